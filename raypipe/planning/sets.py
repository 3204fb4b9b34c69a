"""Sets of identities as numbers, and the bytes that they take as Parquet."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from raypipe.planning.assumptions import assumed

_ROW = 1000  # bytes of an identity beside its images: measured on the demo's sets
# JPEGs of one encoder begin with the same tables, which compression stores nearly once.
_TABLES = 280
# pyarrow keeps a dictionary of a column's values until it has a MiB of them, and an index beside.
_DICTIONARY = 2**20 // 4
# A member of a tar has a header of 512 bytes and is filled up to a multiple of 512; an image has
# three of them: itself, its label, and what is known of it, mostly in less than 512 bytes.
_TAR_BLOCK = 512
_TAR_BESIDE = 4 * _TAR_BLOCK
_SHARD_ROW = 80  # bytes of an image's names and numbers in a Parquet shard


@dataclass(frozen=True, kw_only=True)
class Group:
    """The identities of one source in a face set.

    Attributes:
        identities, images: all of them.
        kept, images_kept: that are not rejected.
        image_bytes: mean of an encoded image.
        embedded: images that have an embedding.
    """

    identities: float
    kept: float
    images: float
    images_kept: float
    image_bytes: float
    embedded: float = 0.0

    def lose(self, *, people: float, images: float) -> "Group":
        """Without a share of the kept identities, and a share of their images."""
        return replace(
            self,
            kept=self.kept * (1 - people),
            images_kept=self.images_kept * (1 - people) * (1 - images),
        )

    def with_images(self, number: float, image_bytes: float, *, embedded: bool) -> "Group":
        """With further images, all of them kept."""
        total = self.images + number
        mean = (self.images * self.image_bytes + number * image_bytes) / max(total, 1)
        return replace(
            self,
            images=total,
            images_kept=self.images_kept + number,
            image_bytes=mean,
            embedded=self.embedded + (number if embedded else 0),
        )


def counted(source: Mapping[str, Any], estimate: Group) -> Group:
    """A group with the numbers of a manifest in the place of estimates."""
    scale = source["images"] / max(estimate.images, 1)
    return replace(
        estimate,
        identities=source["identities"],
        kept=source.get("identities_kept", 0),
        images=source["images"],
        images_kept=source.get("images_kept", 0),
        embedded=min(estimate.embedded * scale, source["images"]),
    )


def embedding_bytes(numbers: float, dimension: int) -> float:
    """Bytes of one of the embeddings of a Parquet file that holds `numbers` float32 values."""
    inside = min(numbers, _DICTIONARY)
    index = inside * math.ceil(math.log2(max(inside, 2))) / 8
    return dimension * (4 + index / max(numbers, 1))


def face_set_bytes(groups: Iterable[Group], dimension: int, rows_per_file: int) -> float:
    """Bytes of a face set."""
    total = 0.0
    for group in groups:
        per_file = rows_per_file * group.embedded / max(group.identities, 1) * dimension
        total += group.identities * _ROW
        stored = max(group.image_bytes - _TABLES, 0.0) + assumed("row bytes")
        total += group.images * stored
        total += group.embedded * embedding_bytes(per_file, dimension)
    return total


def training_set_bytes(images: float, image_bytes: float) -> float:
    """Bytes of a training set, as Parquet and as WebDataset."""
    tar = image_bytes + 1.5 * _TAR_BLOCK + _TAR_BESIDE
    return images * (image_bytes + _SHARD_ROW + tar)
