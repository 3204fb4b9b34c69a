"""What a plan assumes where nothing was counted: one table, each line with its reason.

A finished job, or `raypipe plan --calibrate`, replaces a share or a factor by what it counted.
"""

from typing import NamedTuple


class Assumption(NamedTuple):
    """A number and what it rests on."""

    value: float
    reason: str


_TABLE: list[tuple[str, float, str]] = [
    ("ingest lost", 0.001, "share of images that cannot be read: rare in published sets"),
    ("aligned", 0.98, "share of photographs in which the detector finds a face"),
    ("clean lost", 0.10, "share of images that show somebody else or repeat one"),
    ("clean people lost", 0.02, "share of identities who stand in the set twice"),
    ("judge lost", 0.01, "share of images that further experts take out after clustering"),
    ("unsure people", 0.3, "share of identities of whom clustering is unsure, as in the demo"),
    ("seed passed", 0.6, "share of drawn pictures that pass the gates: 59 % in the demo"),
    ("screen people lost", 0.01, "share of identities who are in a gallery, or an earlier one"),
    ("expand drawn", 1.08, "draws for a wanted image: 91 to 95 % pass (benchmarks/expand.py)"),
    ("expand drawn in a band", 2.0, "likewise, where a band of similarity is asked for"),
    ("augmented bytes", 1.0, "bytes of an augmented image, in those of its parent"),
    ("image bytes", 8000, "112×112 JPEG of a face at quality 95"),
    ("small image bytes", 3700, "likewise, painted by the small networks that ship"),
    ("world image bytes", 4360, "likewise, of the part sample"),
    ("picture bytes a pixel", 1.6, "PNG of a drawn picture: half of the 3 bytes of a pixel"),
    ("crop bytes", 20_000, "PNG of an aligned face, 112×112"),
    ("row bytes", 150, "names and evidence of an image in a row, measured on the demo's sets"),
    ("verification images", 12_000, "images of LFW's 6,000 pairs and of sets like it"),
    ("report bytes", 3_500_000, "the report, which is kept under 5 MB"),
    ("answer seconds", 4.0, "until the vision model answers"),
    ("node start", 300, "seconds until a node of an autoscaled cluster takes work"),
]
ASSUMED = {name: Assumption(value, reason) for name, value, reason in _TABLE}


def assumed(name: str) -> float:
    """The value of an assumption."""
    return ASSUMED[name].value
