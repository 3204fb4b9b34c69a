"""The lines of a list of images, in each of the layouts that trainers read.

- `path`: one absolute path a line (HaiyuWu/SOTA-Face-Recognition-Train-and-Test,
  file_path_extractor.py); the person is the folder the image lies in.
- `path label`: folder2list.py there, caffe's file lists; also with a name for a label.
- `path TAB label`: Tencent/TFace.
- `number TAB label TAB path`: `.lst` of apache/mxnet's tools/im2rec.py; labels are floats, of
  several the first is the class.
- `1 TAB path TAB label`: `.lst` of older deepinsight/insightface; 1 says that it is aligned, boxes
  and landmarks may follow.
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from raypipe.errors import UserError
from raypipe.formats.blob import Blob

MOST = 4096  # bytes of a line, as of a path in Linux
_CHUNK = 2**20
_SAMPLE = 2**16
_IMAGE = re.compile(r"\.(jpe?g|png|webp|bmp|pgm|ppm)$", re.IGNORECASE)


class Line(NamedTuple):
    """What a line says: the image's path, and its label or else its person's name."""

    path: str
    label: int | None
    name: str | None


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 19 else None


def _label(text: str) -> int | None:
    """A class number, which `.lst` files hold as a float: "3.000000"."""
    whole, _, rest = text.partition(".")
    return _number(whole) if not rest.strip("0") else None


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _im2rec(line: str) -> Line | None:
    number, *rest = line.split("\t")
    if len(rest) < 2 or _number(number) is None or _is_float(rest[-1]) or not rest[-1]:
        return None
    label, path = _label(rest[0]), rest[-1]
    return None if label is None else Line(path, label, None)


def _insightface(line: str) -> Line | None:
    aligned, *rest = line.split("\t")
    if aligned not in ("0", "1") or len(rest) < 2 or not rest[0] or _is_float(rest[0]):
        return None
    label = _label(rest[1])
    return None if label is None else Line(rest[0], label, None)


def _tab_label(line: str) -> Line | None:
    path, _, tail = line.partition("\t")
    label = _number(tail)
    return None if label is None or not path else Line(path, label, None)


def _tab_name(line: str) -> Line | None:
    path, _, name = line.partition("\t")
    return None if not name or not path or "\t" in name else Line(path, None, name)


def _space_label(line: str) -> Line | None:
    path, _, tail = line.rpartition(" ")
    label = _number(tail)
    return None if label is None or not path or "\t" in line else Line(path, label, None)


def _space_name(line: str) -> Line | None:
    """A path may hold spaces itself, so here it has to end as an image does."""
    path, _, name = line.rpartition(" ")
    if not _IMAGE.search(path) or not name or _IMAGE.search(name) or "\t" in line:
        return None
    return Line(path, None, name)


def _alone(line: str) -> Line | None:
    folder = line.rpartition("/")[0]
    if not folder or "\t" in line or _space_name(line):
        return None
    return Line(line, None, folder.rpartition("/")[2])


Layout = Callable[[str], Line | None]
# In the order of preference where several fit.
LAYOUTS: dict[str, Layout] = {
    "NUMBER<tab>LABEL<tab>PATH": _im2rec,
    "1<tab>PATH<tab>LABEL": _insightface,
    "PATH<tab>LABEL": _tab_label,
    "PATH<tab>NAME": _tab_name,
    "PATH LABEL": _space_label,
    "PATH NAME": _space_name,
    "FOLDER/PATH": _alone,
}


def layout_of(blob: Blob) -> str:
    """The layout of a list, a key of `LAYOUTS`: that which fits most of the first lines.

    Where the first line has a number for a label, a name in another is a fault, and no reason to
    take the numbers for names.

    Raises:
        UserError: where the first line fits none.
    """
    lines = [_text(line) for _, line in raw_lines(blob, 0, min(blob.size, _SAMPLE))] or [""]
    fits: dict[str, int] = {}
    for name, parse in LAYOUTS.items():
        numbers = LAYOUTS.get(name.replace("NAME", "LABEL"), parse)
        if numbers is parse or not numbers(lines[0]):
            fits[name] = next((n for n, line in enumerate(lines) if not parse(line)), len(lines))
    best = max(fits, key=lambda name: fits[name])
    if not fits[best]:
        raise UserError(
            f"{blob.path}: line 1: {lines[0]!r:.80} names no image; expected {', '.join(LAYOUTS)}"
        )
    return best


def raw_lines(blob: Blob, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """Byte offset and bytes of each line that begins in [start, stop); blank lines are left out.

    Raises:
        UserError: for a line that is longer than a path can be.
    """
    offset = start
    if start:  # a line that begins before `start` belongs to the part before
        head = blob.read(start - 1, MOST + 1)
        offset = start + head.find(b"\n")
        if b"\n" not in head:
            offset = blob.size if len(head) <= MOST else start
    rest = b""
    rest = b""
    while offset + len(rest) < blob.size and offset < stop:
        data = rest + blob.read(offset + len(rest), min(_CHUNK, max(stop - offset, MOST) + 1))
        *lines, rest = data.split(b"\n")
        if offset + len(data) == blob.size and rest:
            lines.append(rest)
            rest = b""
        for line in lines:
            if offset >= stop:
                return
            if len(line) > MOST:
                break
            if line.strip():
                yield offset, line
            offset += len(line) + 1
        else:
            if len(rest) <= MOST:
                continue
        raise UserError(f"{fault_at(blob, offset)}: longer than {MOST:,} bytes, which no path is")


def fault_at(blob: Blob, offset: int) -> str:
    """How to call the line at an offset in an error: "list.txt: line 12"."""
    count, start = 1, 0
    while start < offset:
        data = blob.read(start, min(_CHUNK, offset - start))
        count += data.count(b"\n")
        start += len(data)
    return f"{blob.path}: line {count:,}"


def parsed(blob: Blob, layout: str, offset: int, line: bytes) -> Line:
    """A line in the layout of its list.

    Raises:
        UserError: where it does not fit.
    """
    text = _text(line)
    found = LAYOUTS[layout](text)
    if found is None:
        raise UserError(
            f"{fault_at(blob, offset)}: {text!r:.80} is not {layout} as the lines before it are"
        )
    return found


def _text(line: bytes) -> str:
    """What is not UTF-8 becomes \\xNN."""
    return line.removeprefix(b"\xef\xbb\xbf").strip(b"\r").decode("utf-8", "backslashreplace")
