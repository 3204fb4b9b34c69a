"""Actors of the `assemble` job."""

import time

import pyarrow as pa
import pyarrow.compute as pc

from raypipe import curriculum, exchange, storage, training_set
from raypipe.faceset import FaceSet
from raypipe.identities import Identity
from raypipe.refill import refill
from raypipe.similarity import reject_outside


class RefillActor:
    """Marks the identities that the plan leaves out, refills the others.

    Args:
        band: lowest and highest similarity of an image to its identity's centre, for which the
            plan was made; others are rejected.
        stratified: see `raypipe.refill.refill`.
    """

    def __init__(
        self,
        plan: str,
        images_per_identity: int,
        seed: int,
        jpeg_quality: int,
        band: tuple[float, float] | None = None,
        stratified: bool = False,
    ) -> None:
        import torch

        # Images are small: threads would wait for each other, a further actor is what helps.
        torch.set_num_threads(1)
        rows = curriculum.read_plan(plan, ["identity_id", "rejected"])
        rows = rows.filter(pc.is_valid(rows["rejected"]))
        self._left_out = dict(zip(*(column.to_pylist() for column in rows), strict=True))
        self._images_per_identity = images_per_identity
        self._seed = seed
        self._jpeg_quality = jpeg_quality
        self._band = band
        self._stratified = stratified

    def __call__(self, identities: list[Identity]) -> list[Identity]:
        for identity in identities:
            if identity.rejected is None and self._band is not None:
                reject_outside(identity, self._band)
            identity.rejected = self._left_out.get(identity.identity_id)
            if identity.rejected is None:
                refill(
                    identity,
                    images_per_identity=self._images_per_identity,
                    seed=self._seed,
                    jpeg_quality=self._jpeg_quality,
                    stratified=self._stratified,
                )
        return identities


class SpreadActor:
    """Makes an exchange file, called with its path, of its group of files of the face set.

    Args:
        positions: file of the images' positions; None: all images of a phase are shuffled.
        nearest: file of the identities' similarities to the nearest other; None: not measured.
    """

    def __init__(
        self, root: str, identities: str, plan: str, images_per_identity: int, shard_size: int,
        seed: int, positions: str | None = None, nearest: str | None = None,
    ) -> None:  # fmt: skip
        rows = curriculum.read_plan(plan, ["identity_id", "label", "phase"])
        rows = rows.filter(pc.is_valid(rows["label"]))
        names, labels, phases = (column.to_pylist() for column in rows)
        self._labels = {
            name: (label, phase) for name, label, phase in zip(names, labels, phases, strict=True)
        }
        self._positions = (
            curriculum.image_positions(rows, images_per_identity, seed)
            if positions is None
            else curriculum.read_array(positions)
        )
        self._nearest = None if nearest is None else curriculum.read_array(nearest)
        self._face_set = FaceSet(identities)
        self._groups = {
            exchange.exchange_file(root, number): files
            for number, files in enumerate(exchange.file_groups(self._face_set))
        }
        self._images_per_identity = images_per_identity
        self._ranges = training_set.shard_ranges(len(self._positions), shard_size)

    def __call__(self, path: str) -> pa.Table:
        if not storage.exists(path):
            tables = (
                training_set.to_rows(
                    [identity],
                    self._labels,
                    self._positions,
                    self._images_per_identity,
                    self._nearest,
                )
                for identity in self._face_set.iter_identities(self._groups[path])
            )
            exchange.spread(path, tables, self._ranges)
        return pa.table({"path": [path]})


class ShardActor:
    """Writes a shard, called with its number in digits, or leaves it where it is complete."""

    def __init__(self, root: str, groups: int, images: int, shard_size: int) -> None:
        self._root = root
        self._groups = groups
        self._ranges = training_set.shard_ranges(images, shard_size)

    def __call__(self, number: str) -> pa.Table:
        start = time.perf_counter()
        shard = int(number)
        parquet, tar = training_set.write_shard(
            self._root,
            shard,
            lambda: exchange.gather(self._root, self._groups, shard, self._ranges[shard]),
        )
        seconds = time.perf_counter() - start
        return pa.table(
            {"shard": [shard], "parquet": [parquet], "tar": [tar], "seconds": [seconds]}
        )
