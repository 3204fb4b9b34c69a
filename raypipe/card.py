"""The dataset card of a training set: `README.md` with the YAML head that Hugging Face reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import yaml

from raypipe.licences import Use, consequences

README = "README.md"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A file of the set; `path` is relative to it, `sha256` hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column beside the image; `kind` is its Arrow type."""

    name: str
    kind: str
    about: str


@dataclass(frozen=True, kw_only=True)
class SetFacts:
    """What the card and the Croissant file of a set say.

    Attributes:
        name: tells this set from others: it ends with digits of its content digest.
        about: what it is, a sentence or two.
        fewest, most: images of an identity.
        pattern: of the Parquet files, from the root of the set.
        tars: of the same images as WebDataset, if there are any.
        provenance: Markdown of how it was made, with headings of the third level.
        uses: what it was made from.
    """

    name: str
    about: str
    identities: int
    images: int
    fewest: int
    most: int
    pattern: str
    shards: Sequence[Shard]
    tars: Sequence[Shard]
    columns: Sequence[Column]
    provenance: str
    uses: Sequence[Use]


def card(facts: SetFacts) -> str:
    """The whole card; the same facts give the same text."""
    sections = [
        f"---\n{_head(facts)}---\n",
        f"# {facts.name}\n",
        facts.about + "\n",
        *(f"**{sentence}**\n" for sentence in consequences(facts.uses)),
        "## Counts\n",
        _counts(facts),
        "## Files\n",
        _files(facts),
        "## Loading\n",
        _loading(facts),
        "## Licences\n",
        "What the set was made from or checked with, and under which licence that stands. This is a"
        " list and no legal advice.\n",
        table(
            ("what", "name", "used as", "licence", "said by", "SHA-256"),
            [
                (use.kind, use.name, use.role, _loud(use), use.said_by, use.digest or "")
                for use in facts.uses
            ],
        ),
        "## Provenance\n",
        facts.provenance,
    ]
    return "\n".join(section.rstrip("\n") + "\n" for section in sections)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(_cell(cell) for cell in line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _loud(use: Use) -> str:
    return use.licence if use.said_by != "nobody" else f"**{use.licence}**"


def _head(facts: SetFacts) -> str:
    values = {
        "pretty_name": facts.name,
        "license": "other",
        "license_name": "see-licences",
        "license_link": "#licences",
        "task_categories": ["image-feature-extraction"],
        "tags": ["face-recognition", "raypipe"],
        "size_categories": [_size_category(facts.images)],
        # So that `datasets` takes the Parquet files, whatever else lies beside them.
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": facts.pattern}],
            }
        ],
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _size_category(images: int) -> str:
    """As Hugging Face names them: "10K<n<100K"."""
    bounds = [(10**3, "1K"), (10**4, "10K"), (10**5, "100K"), (10**6, "1M"), (10**7, "10M")]
    if images < bounds[0][0]:
        return "n<1K"
    for (_, low), (most, high) in pairwise(bounds):
        if images < most:
            return f"{low}<n<{high}"
    return "10M<n<100M"


def _counts(facts: SetFacts) -> str:
    each = (
        f"{facts.fewest:,}" if facts.fewest == facts.most else f"{facts.fewest:,} to {facts.most:,}"
    )
    size = sum(shard.size for shard in facts.shards)
    rows = [
        ("identities", f"{facts.identities:,}"),
        ("images", f"{facts.images:,}"),
        ("images per identity", each),
        ("bytes as Parquet", f"{size:,}"),
    ]
    if facts.tars:
        rows.append(("bytes as WebDataset", f"{sum(shard.size for shard in facts.tars):,}"))
    return table(("", ""), rows)


def _files(facts: SetFacts) -> str:
    text = f"`{facts.pattern}`: {len(facts.shards):,} files, one row an image.\n"
    if facts.tars:
        text += f"`{_folder(facts.tars)}/*.tar`: the same images in the same order as WebDataset.\n"
    text += "`croissant.json`: the SHA-256 of every file, and the columns, for machines.\n\n"
    columns = [("image", "struct", "`bytes`: the encoded image, as it was; `path`: its file name")]
    columns += [(column.name, column.kind, column.about) for column in facts.columns]
    return text + table(("column", "type", "what"), columns)


def _loading(facts: SetFacts) -> str:
    text = f"""With `PATH` the folder of this file:

```python
from datasets import load_dataset
faces = load_dataset("PATH", split="train")
faces[0]["image"], faces[0]["label"]
```

```sql
-- DuckDB
SELECT label, count(*) FROM 'PATH/{facts.pattern}' GROUP BY label ORDER BY label;
```
"""
    if facts.tars:
        first, last = facts.tars[0].path, facts.tars[-1].path
        digits = f"{{{_number(first)}..{_number(last)}}}"
        text += f"""
```python
import webdataset
faces = webdataset.WebDataset("PATH/{_folder(facts.tars)}/shard-{digits}.tar", shardshuffle=False)
for image, label in faces.decode("rgb8").to_tuple("jpg;png;webp;bmp", "cls"): ...
```
"""
    return text


def _folder(shards: Sequence[Shard]) -> str:
    return shards[0].path.rpartition("/")[0]


def _number(path: str) -> str:
    return path.rpartition("-")[2].partition(".")[0]
