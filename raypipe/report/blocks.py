"""What a report is made of: sections, and the few kinds of block that fill them.

The template draws a block by its `kind`. All strings are plain text; the template escapes them.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

Tone = Literal["plain", "good", "warn", "bad"]


@dataclass(frozen=True, kw_only=True)
class Face:
    """One face: a picture with a caption under it.

    Attributes:
        src: data URI, or None where the bytes are no readable image (then a frame says so).
        alt: what a person who cannot see the picture is told.
        caption: lines under the picture.
        tone: "bad" frames the picture as removed, "plain" leaves it alone.
    """

    kind: ClassVar[str] = "face"
    src: str | None
    alt: str
    caption: tuple[str, ...] = ()
    tone: Tone = "plain"


@dataclass(frozen=True, kw_only=True)
class Meter:
    """A similarity beside its threshold: a dot on a scale that is one person right of the mark.

    The scale ends at 1 and begins so that the threshold stands at two thirds of it, whatever range
    of cosines an embedder uses: some give 0.1 for two people, others 0.9.
    """

    kind: ClassVar[str] = "meter"
    value: float
    threshold: float
    tone: Tone

    @property
    def place(self) -> float:
        """Position of the dot in percent of the scale."""
        step = max(1 - self.threshold, 0.01)
        low = self.threshold - 2 * step
        return 100 * min(max((self.value - low) / (3 * step), 0.0), 1.0)


@dataclass(frozen=True, kw_only=True)
class Badge:
    """A word with a colour; the word alone carries the meaning."""

    kind: ClassVar[str] = "badge"
    text: str
    tone: Tone


Cell = str | Face | Meter | Badge


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One number of the summary."""

    label: str
    value: str
    detail: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """A row of numbers."""

    kind: ClassVar[str] = "tiles"
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One sentence that answers the question of a section."""

    kind: ClassVar[str] = "verdict"
    word: str
    sentence: str
    tone: Tone


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table that scrolls in its own container.

    Attributes:
        numeric: indices of the columns that hold numbers, set flush right.
    """

    kind: ClassVar[str] = "table"
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Strip:
    """The faces of one identity, those kept and those removed."""

    kind: ClassVar[str] = "strip"
    title: str
    note: str
    faces: tuple[Face, ...]
    badge: Badge | None = None
    more: str = ""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawing with its title and the sentence that says what to look for."""

    title: str
    hint: str
    alt: str
    svg: str


@dataclass(frozen=True, kw_only=True)
class Charts:
    """Charts side by side where there is room."""

    kind: ClassVar[str] = "charts"
    charts: tuple[Chart, ...]


Block = Tiles | Verdict | Text | Table | Strip | Charts


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the report with a heading.

    Attributes:
        anchor: the id that the table of contents points to.
        lead: what the section shows and how to read it.
    """

    anchor: str
    title: str
    lead: str
    blocks: list[Block] = field(default_factory=list)


def absent(anchor: str, title: str, job: str) -> Section:
    """The section of a job that has not been run."""
    text = f"The {job} job has not been run in this workspace, so there is nothing to show here."
    return Section(anchor=anchor, title=title, lead=text)
