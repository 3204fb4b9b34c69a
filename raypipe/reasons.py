"""Why images and identities are rejected, in words for a person."""

REASONS = {
    "ingest:not_an_image": "the file is not an image",
    "ingest:corrupt": "the image cannot be decoded",
    "ingest:truncated": "the file ends in the middle of the image",
    "ingest:too_large": "the picture has more pixels than allowed",
    "ingest:empty": "no usable image in the folder",
    "ingest:bad_name": "the name of the folder or file is not UTF-8",
    "ingest:outside": "a link or path leads out of the folder",
    "ingest:file_too_large": "the file is larger than allowed and was not read",
    "ingest:unreadable": "the file or folder could not be opened",
    "ingest:damaged": "the file that holds the image is damaged there",
    "ingest:missing": "the list names a file that is not there",
    "ingest:nested": "a folder deeper than one level inside an identity",
    "ingest:stray": "a file beside the folders of the identities",
    **{
        f"{job}:{reason}": text
        for job in ("align", "embed", "seed")
        for reason, text in (
            ("not_an_image", "the file is not an image"),
            ("corrupt", "the image cannot be decoded"),
            ("truncated", "the file ends in the middle of the image"),
            ("too_large", "the picture is larger than allowed"),
        )
    },
    **{
        f"{job}:{reason}": text
        for job in ("ingest", "embed", "clean", "judge", "seed", "screen", "expand", "assemble")
        for reason, text in (
            ("failed", "the program failed on it; the job's folder `failures` says how"),
            ("crashed", "the process died of it each time"),
        )
    },
    "align:no_face": "no face was found",
    "align:replaced_by_crop": "its aligned crop is used in its place",
    "clean:other_person": "shows somebody else than the rest of the folder",
    "clean:near_duplicate": "the same picture as another one of the folder",
    "clean:inconsistent": "no two of its images agree on one person",
    "clean:duplicate_identity": "the same person as another identity",
    "judge:other_person": "shows somebody else, by the experts together",
    "judge:near_duplicate": "the same picture as another one, and restored by the experts",
    "judge:inconsistent": "no longer agrees with the images that the experts left",
    "screen:in_gallery": "the person is in a public gallery",
    "screen:not_unique": "too much like another identity",
    "vectors:no_picture": "a vector without a picture, which all images are made from",
    "seed:no_face": "no face was found in the picture",
    "seed:several_faces": "more than one face was found in the picture",
    "seed:small": "the face is too small",
    "seed:blurred": "the face is not sharp enough",
    "seed:turned": "the face is turned too far away",
    "seed:drawing": "looks like a drawing",
    "seed:safety_checker": "the model's safety checker made the picture black",
    "seed:replaced_by_second_pass": "its picture at another pose is used in its place",
    "seed:tries_used_up": "no picture of the person passed the checks",
    "seed:surplus": "drawn, and not needed: enough people were admitted before",
    "expand:not_the_person": "made of the identity, and not enough like it",
    "expand:somebody_else": "made of the identity, and as much like another one",
    "expand:in_gallery": "made of the identity, and like a person of a public gallery",
    "expand:out_of_band": "made of the identity, and more or less like it than wanted",
    "assemble:out_of_band": "too similar or too dissimilar to the centre of its identity",
    "assemble:too_few": "fewer usable images than an identity needs",
    "assemble:spare": "a replacement that no lost identity needed",
    "assemble:surplus": "more images than the set takes of an identity",
}


def explain(reason: str) -> str:
    """The sentence for a reason "job:reason"."""
    return REASONS[reason]
