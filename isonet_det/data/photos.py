"""Photos that cannot be used, and why."""

import os

from detectron2.data.detection_utils import read_image

from ..errors import ISONetError


class UnreadablePhotoError(ISONetError):
    """A photo that is missing or does not decode."""


def unreadable_photo(path: str, error: BaseException) -> UnreadablePhotoError:
    """The error for a photo that is missing or does not decode."""
    if isinstance(error, FileNotFoundError):
        return UnreadablePhotoError(
            f"photo {path} is missing; restore it or take it out of the data set"
        )
    reason = " ".join(str(error).split()).replace(repr(path), "").strip()
    return UnreadablePhotoError(
        f"photo {path} does not decode ({reason}); restore it or take it out"
    )


def examine_photo(path: str, height: int, width: int) -> tuple[str, str] | None:
    """Decode a photo as training does.

    Args:
        path: of the photo.
        height, width: pixels that the annotations say.

    Returns:
        what is wrong, as a kind of :data:`isonet_det.data.annotations.KINDS` and a line; None if
        nothing is.
    """
    if not os.path.isfile(path):
        return "photo missing", str(unreadable_photo(path, FileNotFoundError()))
    try:
        found = read_image(path, "RGB").shape[:2]
    except Exception as error:  # a broken photo raises nearly anything
        return "photo does not decode", str(unreadable_photo(path, error))
    if found != (height, width):
        sizes = f"{found[1]}x{found[0]} pixels, the json says {width}x{height}"
        return "photo of another size than the json says", f"photo {path} has {sizes}"
    return None
