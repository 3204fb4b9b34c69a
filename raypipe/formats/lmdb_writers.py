"""Writes face LMDBs as HSFace is published, and as Vec2Face trains from, with features.

Values are as `raypipe.formats.lmdb_values` describes them; the key of a record is its number.
"""

import io

import numpy as np

from raypipe.errors import UserError
from raypipe.formats import Record

_COMMIT_BYTES, _COMMIT_PUTS = 32 * 2**20, 5000  # held in memory before they are written
_FIRST_MAP = 2**30  # bytes of addresses, not of memory or disk


class HsfaceWriter:
    """Writes one LMDB file as utils/imagelist2lmdb.py of SOTA-FR does, without its lock file.

    10 bytes a record are held for the list of keys, which its loaders ask for. The same records
    give the same bytes on machines of one page size.

    Attributes:
        by_label: True: a loader counts images per label, and takes them to lie side by side.
    """

    by_label = True

    def __init__(self, path: str) -> None:
        """See `raypipe.formats.open_writer`."""
        import lmdb
        import msgpack

        self._path = path
        self._packer = msgpack.Packer()
        self._keys = bytearray()
        self._count = 0
        self._label = -1
        self._failed = lmdb.Error
        self._map = _FIRST_MAP
        # Version 0 of the library, 0.9, is what others read; nothing is synced before the end.
        self._env = lmdb.open(
            path, subdir=False, map_size=self._map, lock=False, sync=False, lib_version=0
        )
        self._begin()

    def write(self, record: Record) -> None:
        """See `raypipe.formats.Writer`.

        Raises:
            UserError: also where the label falls.
        """
        if record.label < max(0, self._label):
            raise UserError(
                f"{self._path}: record {self._count} ({record.image_id}) has label {record.label} "
                f"after {self._label}; labels must rise from 0"
            )
        key = b"%d" % self._count
        self._put(key, self._packer.pack(self._value(record)))
        self._keys += self._packer.pack(key)
        self._count += 1
        self._label = record.label

    def _value(self, record: Record) -> tuple:
        return record.image, int(record.label)

    def finish(self) -> None:
        """See `raypipe.formats.Writer`."""
        self._put(b"__keys__", self._packer.pack_array_header(self._count) + self._keys)
        self._put(b"__len__", self._packer.pack(self._count))
        self._put(b"__classnum__", self._packer.pack(self._label + 1))
        try:
            self._transaction.commit()
            self._env.sync(True)
        except self._failed as error:
            raise UserError(f"{self._path}: cannot be written ({error})") from error
        self._env.close()

    def _begin(self) -> None:
        self._transaction = self._env.begin(write=True)
        self._waiting = self._puts = 0

    def _put(self, key: bytes, value: bytes) -> None:
        try:
            self._waiting += len(value)
            self._puts += 1
            if self._waiting > _COMMIT_BYTES or self._puts > _COMMIT_PUTS:
                self._transaction.commit()
                # A put copies pages on its way, and takes whole pages for what is large.
                used = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
                need = used + 2 * (len(value) + _COMMIT_BYTES) + _COMMIT_PUTS * 2**16
                if need > self._map:
                    self._map = 2 * need
                    self._env.set_mapsize(self._map)
                self._begin()
                self._waiting, self._puts = len(value), 1
            self._transaction.put(key, value)
        except self._failed as error:
            raise UserError(f"{self._path}: cannot be written ({error})") from error


class Vec2FaceWriter(HsfaceWriter):
    """Writes one LMDB file as scripts/prepare_training_set.py of Vec2Face does."""

    def _value(self, record: Record) -> tuple:
        if record.feature is None:
            raise UserError(
                f"{self._path}: record {self._count} ({record.image_id}) has no feature; "
                "write it as hsface"
            )
        array = io.BytesIO()
        np.save(array, np.asarray(record.feature, np.float32))
        return record.image, array.getvalue(), int(record.label)
