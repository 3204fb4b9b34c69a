"""The section that sets a plan beside what was."""

import json

from raypipe.manifest import Manifest, Origin, write_manifest
from raypipe.report.blocks import Charts, Table, Text, Tiles
from raypipe.report.sections import planned
from raypipe.report.workspace import Workspace


def workspace(root, *, resumed=False, rates="2 cores, 2026-01-01"):
    jobs = {}
    # Job → seconds planned and actual, bytes planned.
    for job, (expected, took, size) in {
        "ingest": (10.0, 11.0, 2000),
        "embed": (30.0, 60.0, 4000),
    }.items():
        folder = root / job
        folder.mkdir()
        run = {"seconds": took, "resumed": resumed and job == "embed", "stages": []}
        (folder / "run.json").write_text(json.dumps(run))
        (folder / "rows.bin").write_bytes(bytes(size))
        origin = Origin(job=job, settings={}, inputs={}, models={})
        counts = {"images": {"total": 200}}
        write_manifest(str(folder), Manifest(origin=origin, counts=counts, content_digest=""))
        jobs[job] = {"seconds": expected, "bytes": size, "images": 100}
    (root / planned.PLAN).write_text(json.dumps({"rates": rates, "jobs": jobs}))
    return Workspace(str(root))


def test_it_tells_planned_actual_and_ratio(tmp_path):
    section = planned.section(workspace(tmp_path))
    assert "measured on 2 cores, 2026-01-01" in section.lead
    tiles, charts, table, off = section.blocks
    assert isinstance(tiles, Tiles) and isinstance(charts, Charts) and isinstance(table, Table)
    assert tiles.tiles[0].value == "1 min 11 s" and "planned 40.0 s" in tiles.tiles[0].detail
    assert tiles.tiles[0].tone == "warn"  # 71 s of 40
    ingest, embed, everything = table.rows
    assert ingest[:4] == ("ingest", "10.0 s", "11.0 s", "1.10")
    assert embed[:4] == ("embed", "30.0 s", "1 min 00 s", "2.00")
    assert embed[7:] == ("100", "200", "2.00")
    assert everything[:4] == ("all", "40.0 s", "1 min 11 s", "1.77")
    assert isinstance(off, Text) and off.text.endswith("embed took 30.0 s longer.")


def test_the_chart_says_what_to_look_for(tmp_path):
    (chart,) = planned.section(workspace(tmp_path)).blocks[1].charts
    assert "Look" in chart.hint and "<svg" in chart.svg
    assert "embed 30.0 s planned, 1 min 00 s actual" in chart.alt


def test_a_job_of_several_sittings_says_so(tmp_path):
    section = planned.section(workspace(tmp_path, resumed=True))
    assert "several sittings: embed" in section.blocks[-1].text


def test_without_measurements_it_says_that_rates_were_assumed(tmp_path):
    assert "assumed rates" in planned.section(workspace(tmp_path, rates="")).lead


def test_without_a_plan_it_says_so(tmp_path):
    section = planned.section(Workspace(str(tmp_path)))
    assert section.blocks == [] and "No plan" in section.lead
