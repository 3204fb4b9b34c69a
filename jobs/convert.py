"""Turns a set of one format into another: every image as the bytes it was."""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np

from jobs.progress import Bar, console
from raypipe import storage
from raypipe.errors import UserError
from raypipe.formats import DamagedError, Record, open_reader, open_writer
from raypipe.formats.by_label import by_label
from raypipe.formats.detect import FORMATS, PAIR_FORMATS, WRITERS
from raypipe.formats.verification import convert_pairs, is_pair_set
from raypipe.images import extension
from raypipe.scratch import scratch

_SHOWN = 5


class Converted(NamedTuple):
    """What was written, and what was not and why, a line each."""

    text: str
    faults: Sequence[str] = ()


def convert(source: str, target: str, format: str, mask: str | None = None) -> Converted:
    """Reads a set, whatever it is, and writes it as another format.

    Labels that leave gaps, or do not begin at 0, are numbered anew: a trainer makes a class of each
    number up to the highest. Records keep their order, except in a format that needs the images of
    a person side by side.

    Args:
        source: local path or URI of a training set or of a verification set.
        target: local path or URI that must not exist yet.
        format: one of `raypipe.formats.detect.WRITERS`, or for a verification set of PAIR_FORMATS.
        mask: .npy file with the indices of the records to take; for LMDB.

    Raises:
        UserError: where the source is no set, the format unknown, or the target there already.
    """
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    pairs = is_pair_set(source)
    if format not in (PAIR_FORMATS if pairs else WRITERS):
        what, right = ("verification", PAIR_FORMATS) if pairs else ("training", WRITERS)
        raise UserError(
            f"{source}: a {what} set, which {format!r} cannot hold; "
            f"formats for it: {', '.join(right)}"
        )
    if pairs:
        count = convert_pairs(source, target, format)
        return Converted(f"{target}: {count:,} pairs as {format}")
    return _images(source, target, format, mask)


def _images(source: str, target: str, format: str, mask: str | None) -> Converted:
    reader = open_reader(source, mask=mask)
    with console.status(f"{source}: looking at every label"):
        survey = reader.survey()
    if not survey.images:
        raise UserError(f"{source}: no image in it that can be read")
    gaps = len(survey.labels) != survey.labels[-1] + 1 or survey.labels[0] != 0
    written, faults = 0, []
    no_images = 0
    with open_writer(target, format) as writer, _scratch(target) as folder:
        records = reader.records()
        if writer.by_label and not survey.in_order:
            records = by_label(records, survey, folder)
        with Bar("convert", survey.images, lambda: (written, "")):
            try:
                for record in _renumbered(records, survey.labels) if gaps else records:
                    if extension(record.image[:16]) is None:
                        no_images += 1
                        if no_images <= _SHOWN:
                            faults.append(f"{source}: record {record.image_id} is no image")
                        continue
                    writer.write(record)
                    written += 1
            except DamagedError as error:  # comes after everything that is intact
                faults.append(str(error))
        if not written:
            raise UserError(f"{source}: no image in it; {'; '.join(faults)}")
    if no_images > _SHOWN:
        faults.append(f"{no_images:,} records of {source} are no images")
    text = f"{target}: {written:,} images of {len(survey.labels):,} identities as {format}"
    if gaps:
        last = survey.labels[-1]
        text += f"; labels were {survey.labels[0]:,} to {last:,} with gaps, and are numbered anew"
    if writer.by_label and not survey.in_order:
        text += "; images of a person were brought together"
    return Converted(text, faults)


def _scratch(target: str) -> AbstractContextManager[str]:
    """A folder on the disk that has room for the target."""
    return scratch(
        None if storage.is_uri(target) else os.path.dirname(storage.filesystem(target)[1])
    )


def _renumbered(records: Iterator[Record], labels: np.ndarray) -> Iterator[Record]:
    rank = {label: number for number, label in enumerate(labels.tolist())}
    for record in records:
        yield record._replace(label=rank[record.label])
