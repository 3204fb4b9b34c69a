"""Names of images where each is a file of its own."""

from raypipe.errors import UserError
from raypipe.images import extension


def suffix(data: bytes, image_id: str) -> str:
    """The file extension of an image.

    Raises:
        UserError: where it is no image.
    """
    found = extension(data[:16])
    if found is None:
        raise UserError(
            f"{image_id}: not an image (JPEG, PNG, WebP, BMP or PPM), so it cannot be written as "
            "a file of its kind; `raypipe ingest` sorts such images out"
        )
    return found
