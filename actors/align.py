"""The actor that cuts faces out of photographs."""

from typing import Any

from raypipe.aligners import open_aligner
from raypipe.config.align import AlignerConfig
from raypipe.identities import Identity, Image
from raypipe.images import ImageError, decode, encode_jpeg, encode_png


class AlignActor:
    """Adds the aligned crop of every kept image and marks the photograph as replaced by it.

    Args:
        aligner: fields of an `AlignerConfig`.
        threads: CPU threads of the process.

    A photograph becomes "align:replaced_by_crop", "align:no_face", or "align:" and the reason why
    it cannot be decoded. The crop, "<image_id>#aligned", has the photograph as its parent and
    follows the identity's images.
    """

    def __init__(self, aligner: dict[str, Any], threads: int = 1) -> None:
        import cv2

        cv2.setNumThreads(threads)
        config = AlignerConfig(**aligner)
        self._aligner = open_aligner(config, threads=threads)
        self._encode = encode_png if config.encoding == "png" else encode_jpeg

    def __call__(self, identities: list[Identity]) -> list[Identity]:
        for identity in identities:
            if identity.rejected is None:
                identity.images += [
                    crop for image in identity.kept if (crop := self._crop(image)) is not None
                ]
        return identities

    def _crop(self, image: Image) -> Image | None:
        try:
            face = self._aligner.align(decode(image.data, source=image.source))
        except ImageError as error:
            image.rejected = f"align:{error.reason}"
            return None
        if face is None:
            image.rejected = "align:no_face"
            return None
        image.rejected = "align:replaced_by_crop"
        return Image(
            image_id=f"{image.image_id}#aligned",
            data=self._encode(face.crop),
            source=image.source,
            parent=image.image_id,
        )
