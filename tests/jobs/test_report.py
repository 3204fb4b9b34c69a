"""The job: what it writes, when it does nothing, and when it writes anew."""

from html.parser import HTMLParser

import pytest

from jobs import report
from raypipe import storage
from raypipe.config import Build, parse
from raypipe.errors import UserError
from raypipe.faceset import write_rows
from raypipe.identities import Identity, Image
from raypipe.images import encode_jpeg
from raypipe.manifest import Manifest, Origin, read_manifest, summarise, write_manifest
from raypipe.seeding import generator

EVIL = '"><script>alert(1)</script>'


class Headings(HTMLParser):
    """Collects the text of all headings, and the names of all elements."""

    def __init__(self) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.names: set[str] = set()
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        if tag in ("h1", "h2", "h3"):
            self._inside = True
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("h1", "h2", "h3")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.headings[-1] += data


def clean_set(root: str, images: int, names: tuple[str, ...] = ("a", EVIL), side: int = 32) -> None:
    """A finished clean set of noise pictures, one of each identity removed."""
    folder = storage.join(root, "clean")
    people = []
    for index, name in enumerate(names):
        pictures = generator(0, name).integers(0, 256, (images, side, side, 3)).astype("uint8")
        faces = [
            Image(
                image_id=f"{i}.jpg",
                data=encode_jpeg(picture),
                source="test",
                similarity=0.5,
                rejected=None if i else "clean:other_person",
            )
            for i, picture in enumerate(pictures)
        ]
        people.append(Identity(identity_id=name, index=index, source="base", images=faces))
    write_rows(folder, "part.parquet", people)
    counts, digest = summarise(folder)
    write_manifest(
        folder,
        Manifest(
            origin=Origin(job="clean", settings={}, inputs={}, models={}),
            counts={
                "identities": {"total": len(names), "kept": len(names), "rejected": {}},
                "images": {
                    "total": counts.images,
                    "read": counts.images,
                    "made": 0,
                    "kept": counts.images_kept,
                    "rejected": dict(counts.rejected_images),
                },
                "sources": {"base": dict(counts.sources["base"])},
                "bytes": counts.bytes,
            },
            content_digest=digest,
        ),
    )


def config_of(root: str) -> Build:
    values = {
        "workspace": root,
        "embedder": {"kind": "dlib"},
        "ingest": {"sources": [{"name": "base", "path": "nowhere"}]},
    }
    return parse({**values, "report": {"title": "For <you> & me"}}, "test")


@pytest.fixture
def config(tmp_path) -> Build:
    clean_set(str(tmp_path), 4)
    return config_of(str(tmp_path))


def page_of(config: Build) -> str:
    return storage.read_bytes(f"{config.workspace}/report/{report.REPORT}").decode()


def test_writes_one_file_that_escapes_what_it_shows(config: Build) -> None:
    manifest = report.run(config)
    page = page_of(config)
    assert manifest.counts["bytes"] == len(page.encode()) < 5_000_000
    parser = Headings()
    parser.feed(page)
    assert parser.headings[0] == "For <you> & me"
    assert any(EVIL in heading for heading in parser.headings)
    assert "script" not in parser.names
    assert "http://" not in page
    assert "https://" not in page


def test_says_what_has_not_been_run(config: Build) -> None:
    report.run(config)
    assert "Not run yet: ingest, embed, screen, assemble, train, evaluate." in page_of(config)
    assert "nobody has compared the set with a gallery" in page_of(config)


def test_a_second_run_does_nothing(config: Build) -> None:
    first = report.run(config)
    path = f"{config.workspace}/report/{report.REPORT}"
    storage.write_bytes(path, b"untouched")
    assert report.run(config) == first
    assert storage.read_bytes(path) == b"untouched"


def test_is_written_anew_where_something_it_shows_changed(config: Build) -> None:
    first = report.run(config)
    storage.delete(f"{config.workspace}/clean")
    clean_set(config.workspace, 5)
    second = report.run(config)
    assert second.origin.inputs != first.origin.inputs
    assert second.content_digest != first.content_digest
    assert read_manifest(f"{config.workspace}/report") == second


def test_an_empty_workspace_is_a_mistake(tmp_path) -> None:
    with pytest.raises(UserError, match="no job is finished"):
        report.run(config_of(str(tmp_path)))
    assert storage.listdir(str(tmp_path)) == []


def test_a_damaged_set_names_its_file_and_leaves_no_page(config: Build) -> None:
    rows = f"{config.workspace}/clean/rows/part.parquet"
    storage.write_bytes(rows, storage.read_bytes(rows)[:500])
    with pytest.raises(UserError, match=r"part\.parquet"):
        report.run(config)
    assert not storage.exists(f"{config.workspace}/report/{report.REPORT}")


def test_stays_under_five_megabytes_however_large_the_faces(tmp_path) -> None:
    clean_set(str(tmp_path), 15, tuple(f"{i:03d}" for i in range(60)), side=140)
    config = config_of(str(tmp_path))
    many = config.model_copy(update={"report": config.report.model_copy(update={"identities": 40})})
    report.run(many)
    page = page_of(many)
    assert page.count("<img") >= 40 * 8
    assert len(page.encode()) < 5_000_000
