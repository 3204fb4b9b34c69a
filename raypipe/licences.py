"""Under which licence everything stands that a set was made from: sources, galleries and weights.

What the configuration states counts; else what is known of published weights, by their digest or
file name; else it is "not stated", and every list says so. Nothing here is legal advice.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from raypipe.config import Build
from raypipe.manifest import Manifest

NOT_STATED = "not stated"
# https://github.com/deepinsight/insightface, python-package/README.md: "The pretrained models we
# provided with this library are available for non-commercial research purposes only".
_INSIGHTFACE = "non-commercial research only (insightface's model packs)"
_INSIGHTFACE_FILES = frozenset(
    (
        # buffalo_l, buffalo_m, buffalo_s, buffalo_sc
        "det_10g.onnx", "det_2.5g.onnx", "det_500m.onnx", "w600k_r50.onnx", "w600k_mbf.onnx",
        # antelopev2
        "scrfd_10g_bnkps.onnx", "glintr100.onnx",
        # in all but buffalo_sc
        "1k3d68.onnx", "2d106det.onnx", "genderage.onnx",
    )
)  # fmt: skip
# The cards of these files are in raypipe/weights.
_SHIPPED = {
    "7f227b43119789a1fc6b8f4f283b2b259d6e5314fba892410ee12a0dd3ee8bbe": "CC0-1.0",
    "773a9cc3afe420334b13b6ae6e15cae9ca606db9d2df3500ada3836ef7d87fff": "MIT",
    "d3ff36b5ce2c013c67aa7f993b3c0157fc35dd9c46906ebf8da4b45f0727c171": "MIT",
    "6997f57d18c0c4c6fe049bc28d00251773db04b7271713ed8cbf3a8d97bb6a8d": "Apache-2.0",
    "8bbe752f511128df7c9b48373b627bf8a2974b9d5c4f0b647a99fe19b439e3a2": "MIT",
    # All files of face_diffusion, as raypipe.diffusion_files.digest has it.
    "b6876d4681a8f366e1a3be770810d314f6f85ff52d9b30de97688f29db663fc7": "MIT",
}
_RESTRICTED = re.compile(r"non-?\s?commercial|research[\s-](purposes[\s-])?only|\bNC\b", re.I)

Kind = Literal["weights", "source", "gallery"]


@dataclass(frozen=True, kw_only=True)
class Use:
    """Something a set was made from.

    Attributes:
        name: file name of weights, name of a source or gallery.
        role: what it was used for.
        licence: as stated or known, else `NOT_STATED`.
        said_by: who says so.
        digest: hex SHA-256 of weights.
    """

    kind: Kind
    name: str
    role: str
    licence: str
    said_by: str
    digest: str | None = None

    @property
    def restricted(self) -> bool:
        """Whether its licence allows research or non-commercial use alone."""
        return bool(_RESTRICTED.search(self.licence))


def weights_use(name: str, digest: str, role: str, stated: str | None = None) -> Use:
    """A weight file, by the licence that is stated, or else known of it."""
    if stated:
        licence, said_by = stated, "the configuration"
    elif digest in _SHIPPED:
        licence, said_by = _SHIPPED[digest], "raypipe, which ships the file"
    elif name in _INSIGHTFACE_FILES:
        licence, said_by = _INSIGHTFACE, "its publisher, going by the file name"
    else:
        licence, said_by = NOT_STATED, "nobody"
    return Use(
        kind="weights", name=name, role=role, licence=licence, said_by=said_by, digest=digest
    )


def uses(
    config: Build,
    manifests: Mapping[str, Manifest],
    generators: Iterable[tuple[str, str]] = (),
) -> list[Use]:
    """Everything that the jobs up to the training set used, sources first.

    Args:
        manifests: of the finished jobs, by their folders in the workspace.
        generators: name and hex SHA-256 of the weights of what made images of the set.
    """
    ingest = config.ingest
    found = [
        _set("source", item.name, "images of the set", item.licence) for item in ingest.sources
    ]
    found += [
        _set("gallery", item.name, "people who must not be in the set", item.licence)
        for item in config.screen.galleries
    ]
    aligner = ingest.aligner.licence if ingest.aligner else None
    stated = {"ingest": aligner, "embed": config.embedder.licence}
    roles = {"sample": "generator of the sample world", "ingest": "aligner", "embed": "embedder"}
    for item in config.screen.galleries:
        job = f"screen/galleries/{item.name}"
        stated[f"{job}/ingest"] = item.aligner.licence if item.aligner else None
        stated[f"{job}/embed"] = config.embedder.licence
        roles |= {f"{job}/ingest": "aligner", f"{job}/embed": "embedder"}
    for job, manifest in manifests.items():
        for name, digest in sorted(manifest.origin.models.items()):
            role, licence = roles.get(job, job), stated.get(job)
            if job == "seed":
                role, licence = _seeding(config, name)
            elif job == "expand":
                role, licence = _expansion(config, name)
            found.append(weights_use(name, digest, role, licence))
    if config.seeds and (seed := manifests.get("seed")):
        name, digest = seed.origin.settings["diffusion"]["model"], seed.origin.inputs["model"]
        licence = config.seeds.diffusion.licence
        found.append(weights_use(name, digest, "diffusion model", licence))
    listed = {use.digest for use in found}
    found += [
        weights_use(name, digest, "generator")
        for name, digest in sorted(generators)
        if digest not in listed
    ]
    return list(dict.fromkeys(found))


def _embedder_file(config: Build) -> str:
    """Name of the weight file of the embedder."""
    return (config.embedder.weights or "dlib_resnet_v1.safetensors").rpartition("/")[2]


def _seeding(config: Build, name: str) -> tuple[str, str | None]:
    """What a weight file of the seed job is for, and the licence that is stated."""
    if name == _embedder_file(config):
        return "embedder", config.embedder.licence
    return "aligner", config.seeds.aligner.licence if config.seeds else None


def _expansion(config: Build, name: str) -> tuple[str, str | None]:
    """What a weight file of the expansion job is for, and the licence that is stated."""
    if name == _embedder_file(config):
        return "embedder", config.embedder.licence
    for painter in config.expand.painters if config.expand else []:
        if name == painter.weights_file:
            return "generator of new faces", painter.licence
    return "estimator of attributes", None


def _set(kind: Kind, name: str, role: str, stated: str | None) -> Use:
    return Use(
        kind=kind,
        name=name,
        role=role,
        licence=stated or NOT_STATED,
        said_by="the configuration" if stated else "nobody",
    )


def consequences(found: Sequence[Use]) -> list[str]:
    """What follows for the set, a sentence each."""
    restricted = [use for use in found if use.restricted]
    unknown = [use for use in found if use.licence == NOT_STATED]
    sentences = []
    if restricted:
        sentences.append(
            f"This set was made or cleaned with what is licensed for research or non-commercial "
            f"use only: {_names(restricted)}. Use the set for nothing else, unless the owners "
            f"allow it."
        )
    if unknown:
        sentences.append(
            f"Nobody stated the licence of {_names(unknown)}. Find it out before you pass the set "
            f"on, and state it in the configuration (`licence:`)."
        )
    if not sentences:
        sentences.append(
            "For everything this set was made from its terms are stated below, and none of them "
            "names research or non-commercial use as its limit."
        )
    return sentences


def _names(found: Sequence[Use]) -> str:
    return ", ".join(dict.fromkeys(f"{use.kind} `{use.name}`" for use in found))
