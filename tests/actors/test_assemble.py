import numpy as np
import pytest

from actors.assemble import RefillActor, ShardActor, SpreadActor
from raypipe import curriculum, exchange, training_set
from raypipe.faceset import FaceSet, write_rows
from raypipe.identities import Identity, Image
from raypipe.images import encode_jpeg


def person(number: int) -> Identity:
    rng = np.random.default_rng(number)
    images = [
        Image(
            image_id=str(k),
            data=encode_jpeg(rng.integers(0, 256, (8, 8, 3), np.uint8)),
            source="in",
        )
        for k in range(2 + number % 5)
    ]
    return Identity(identity_id=f"p{number}", index=number, source="base", images=images)


def assemble(root: str, files: int, calls: int) -> list[dict[str, object]]:
    """The job without Ray: `files` files, identities handed out `calls` at a time."""
    people = [person(n) for n in range(12)]
    write_rows(f"{root}/screen", "0.parquet", people)
    plan = f"{root}/plan.parquet"
    rows = curriculum.small_rows(FaceSet(f"{root}/screen"))
    made = curriculum.make_plan(rows, min_images=3, phases=["base"], replacement=None, seed=1)
    curriculum.write_plan(plan, made)
    refill = RefillActor(plan, images_per_identity=5, seed=1, jpeg_quality=90)
    done = [row for start in range(0, 12, calls) for row in refill(people[start : start + calls])]
    for number in range(files):
        write_rows(f"{root}/identities", f"{number}.parquet", done[number::files])
    spread = SpreadActor(
        root, f"{root}/identities", plan, images_per_identity=5, shard_size=20, seed=1
    )
    groups = len(exchange.file_groups(FaceSet(f"{root}/identities")))
    for number in range(groups):
        spread(exchange.exchange_file(root, number))
    images = 5 * sum(item.rejected is None for item in done)
    shard = ShardActor(root, groups=groups, images=images, shard_size=20)
    numbers = range(len(training_set.shard_ranges(images, 20)))
    return [shard(str(number)).drop_columns(["seconds"]).to_pylist()[0] for number in numbers]


@pytest.mark.parametrize(("files", "calls"), [(3, 5), (1, 1)])
def test_files_and_calls_do_not_matter(tmp_path, files, calls):
    shards = assemble(str(tmp_path / "a"), 1, 12)
    assert [row["shard"] for row in shards] == [0, 1, 2]
    assert assemble(str(tmp_path / "b"), files, calls) == shards
    left_out = {
        item.identity_id: item.rejected
        for item in FaceSet(str(tmp_path / "a/identities")).iter_identities()
        if item.rejected
    }
    assert left_out == dict.fromkeys(("p0", "p5", "p10"), "assemble:too_few")
