"""How many tokens a question has, and what they cost.

An image at detail "high" is scaled to fit 2048×2048, then so that its shorter side has at most 768
pixels, and costs a base and a price for each tile of 512×512 that it touches (OpenAI, "Images and
vision": 85 and 170 tokens for gpt-4o). The number of tokens of a text depends on a vocabulary that
is no part of any package; words, numbers of up to three digits and signs are counted, which is how
GPT-4's tokenizers cut a text before they look anything up. Common English words are one token.
"""

import math
import re

from raypipe.config.judge import PriceConfig

_LARGEST, _SHORTER, _TILE = 2048, 768, 512
# The cut of GPT-4's tokenizers, without what matters to other languages only. A space belongs to
# the word behind it, but not to a number.
_PIECES = re.compile(r"'(?:s|t|re|ve|m|ll|d)|[^\W\d_]+|\d{1,3}|[^\s\w]+|_+|\s(?=\d)")
_MESSAGE, _REPLY = 3, 3  # of the wrapping of a message, and of the beginning of the reply


def image_tokens(width: int, height: int, prices: PriceConfig) -> int:
    """Tokens of an image of so many pixels, at detail "high"."""
    scale = min(1.0, _LARGEST / max(width, height))
    scale *= min(1.0, _SHORTER / (min(width, height) * scale))
    # Rounded first: 512.0000001 pixels are not two tiles.
    tiles = [math.ceil(round(side * scale, 3) / _TILE) for side in (width, height)]
    return prices.image_base + prices.image_tile * tiles[0] * tiles[1]


def text_tokens(text: str) -> int:
    """About how many tokens an English text has."""
    return len(_PIECES.findall(text))


def message_tokens(parts: list[str]) -> int:
    """Tokens of messages, one text each, without their images."""
    return _REPLY + sum(_MESSAGE + 1 + text_tokens(text) for text in parts)


def price(sent: int, received: int, prices: PriceConfig, *, batch: bool = False) -> float:
    """Dollars for tokens."""
    share = prices.batch if batch else 1.0
    return share * (sent * prices.input + received * prices.output) / 1e6
