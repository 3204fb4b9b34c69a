"""Croissant 1.0 metadata (http://mlcommons.org/croissant/1.0): what is in a set, for machines."""

from typing import Any

from raypipe.card import SetFacts, Shard

CROISSANT = "croissant.json"
_PARQUET, _TAR = "application/x-parquet", "application/x-tar"
# The context that the specification asks for, word for word.
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_TYPES = {"int64": "sc:Integer", "int32": "sc:Integer", "float": "sc:Float", "string": "sc:Text"}


def croissant(facts: SetFacts) -> dict[str, Any]:
    """The metadata as JSON-LD. It holds no date: the same set has the same bytes.

    Paths are relative to the folder that the file lies in; every file has its SHA-256.
    """
    licences = list(dict.fromkeys(use.licence for use in facts.uses))
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": facts.name,
        "description": facts.about,
        "license": licences,
        "version": "1.0.0",
        "distribution": [
            *(_file(shard, _PARQUET) for shard in facts.shards),
            *(_file(shard, _TAR) for shard in facts.tars),
            {
                "@type": "cr:FileSet",
                "@id": "parquet-files",
                "name": "parquet-files",
                "encodingFormat": _PARQUET,
                "includes": facts.pattern,
            },
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "faces",
                "name": "faces",
                "description": f"{facts.images} images of {facts.identities} identities.",
                "field": [
                    _field("image", "sc:ImageObject", "the encoded image", "bytes"),
                    *(
                        _field(column.name, _TYPES[column.kind], column.about)
                        for column in facts.columns
                    ),
                ],
            }
        ],
    }


def _file(shard: Shard, kind: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": shard.path,
        "name": shard.path,
        "contentUrl": shard.path,
        "contentSize": f"{shard.size} B",
        "encodingFormat": kind,
        "sha256": shard.sha256,
    }


def _field(name: str, kind: str, about: str, inner: str | None = None) -> dict[str, Any]:
    source: dict[str, Any] = {"fileSet": {"@id": "parquet-files"}, "extract": {"column": name}}
    if inner:
        source["transform"] = {"jsonPath": inner}
    return {
        "@type": "cr:Field",
        "@id": f"faces/{name}",
        "name": f"faces/{name}",
        "description": about,
        "dataType": kind,
        "source": source,
    }
