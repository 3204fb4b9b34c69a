"""Samples of a tar: members that follow each other and share a name."""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from raypipe.formats import Damage
from raypipe.formats.keyed import UNKNOWN
from raypipe.formats.tar import Member, Window, members
from raypipe.images import extension

_HEAD = 16  # bytes that tell an image
_CLS = 64
_TEXTS = {"cls": _CLS, "json": 2**20}  # bytes read of them
_IMAGES = frozenset(("jpg", "jpeg", "png", "webp", "bmp", "pgm", "ppm"))
_OWN = re.compile(r"__[^/]*__($|/)")  # members that WebDataset keeps to itself


class _Sample:
    """Members with one key that follow each other.

    Attributes:
        offset: byte offset of the first header.
        torn: whether damage that has been told lies beside or within.
        image: the image's place.
        data: its bytes, where they are wanted and not too many.
        images: how many images there are with the same right.
    """

    def __init__(self, key: str, offset: int, torn: bool) -> None:
        self.key = key
        self.offset = offset
        self.torn = torn
        self.suffixes: set[str] = set()
        self.image: Member | None = None
        self.data = b""
        self.images = 0
        self.named = False
        self.texts: dict[str, bytes] = {}

    def add(self, member: Member, suffix: str, window: Window, most: int) -> None:
        """Takes what matters of a member, and of an image at most so many bytes."""
        self.suffixes.add(suffix)
        if suffix in _TEXTS:
            self.texts[suffix] = window.read(member.start, min(member.size, _TEXTS[suffix] + 1))
            return
        if extension(window.read(member.start, min(member.size, _HEAD))) is None:
            return
        named = suffix.rpartition(".")[2] in _IMAGES
        if self.images and named == self.named:
            self.images += 1
        elif not self.images or named:  # a text may begin like an image: "BM", "P5"
            self.image, self.images, self.named = member, 1, named
            self.data = window.read(member.start, member.size) if member.size <= most else b""

    def who(self) -> tuple[int, str]:
        """Label and identity.

        Raises:
            ValueError: where the sample is not one image with a label; its text says what is wrong.
        """
        if self.images != 1:
            found = f"{self.images} images" if self.images else "no image"
            raise ValueError(f"sample {self.key}: {found} ({', '.join(sorted(self.suffixes)[:9])})")
        about = _about(self.texts["json"]) if "json" in self.texts else {}
        stated = self.texts["cls"] if "cls" in self.texts else about.get("label", about.get("cls"))
        if stated is None:
            raise ValueError(f"sample {self.key}: no label (no .cls, and none in a .json)")
        label = _number(stated)
        if label is None:
            raise ValueError(f"sample {self.key}: label {stated!r:.40} is no class number")
        name = about.get("identity_id", about.get("identity"))
        if isinstance(name, bool) or not isinstance(name, str | int) or name in ("", UNKNOWN):
            name = label
        return label, str(name).encode("utf-8", "backslashreplace").decode()


def _about(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _number(stated: object) -> int | None:
    """A class number in ASCII digits or as a JSON number."""
    if isinstance(stated, bytes):
        stated = stated.decode("latin-1")
    if isinstance(stated, str) and len(stated) <= _CLS and stated.strip().isdecimal():
        stated = int(stated)
    whole = isinstance(stated, int) and not isinstance(stated, bool)
    return stated if whole and 0 <= stated < 2**63 else None  # type: ignore[operator, return-value]


class Found(NamedTuple):
    """A sample that is one image with a label; `data` is empty where there is too much of it."""

    key: str
    label: int
    identity: str
    image: Member
    data: bytes


def _found(sample: _Sample, path: str) -> Iterator[Found | Damage]:
    """What a sample says. Of one that damage has cut into, nothing is told but that damage."""
    try:
        label, identity = sample.who()
    except ValueError as error:
        if not sample.torn:
            yield Damage(path, sample.offset, str(error))
    else:
        assert sample.image is not None
        yield Found(sample.key, label, identity, sample.image, sample.data)


def read_samples(window: Window, path: str, most: int) -> Iterator[Found | Damage]:
    """The samples of a tar in order, and its damages.

    Args:
        most: the bytes of a larger image are not read.
    """
    sample: _Sample | None = None
    torn = False
    for member in members(window, path):
        if isinstance(member, Damage):
            if sample:
                sample.torn = True
            torn = True
            yield member
            continue
        name = member.name
        slash = name.rfind("/")
        dot = name.find(".", slash + 1)
        if dot <= slash + 1 or (name.startswith("__") and _OWN.match(name)):
            continue
        key, suffix = name[:dot], name[dot + 1 :].lower()
        if sample is None or key != sample.key or suffix in sample.suffixes:
            if sample:
                yield from _found(sample, path)
            sample = _Sample(key, member.header, torn)
            torn = False
        sample.add(member, suffix, window, most)
    if sample:
        yield from _found(sample, path)
