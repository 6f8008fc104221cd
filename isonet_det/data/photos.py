"""Photos that cannot be used, and why."""

import errno
import os
import sys
from pathlib import Path

from detectron2.data.detection_utils import read_image
from PIL import Image

from ..errors import ISONetError
from .findings import AS_DISPLAYED, FAILS, NOBODY_KNOWS, NOTE

ORIENTATION = 0x0112  # EXIF's tag


class UnreadablePhotoError(ISONetError):
    """A photo that is missing or does not decode."""


def unreadable_photo(path: str, error: BaseException, root: str = "") -> UnreadablePhotoError:
    """The error of a photo; ``root`` is the folder that its name in the json is relative to."""
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        raise error  # too many open files
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        names = f"file names are {sys.getfilesystemencoding()} here, not UTF-8"
        return UnreadablePhotoError(f"photo {path}: {names}; set PYTHONUTF8=1")
    if isinstance(error, FileNotFoundError):
        hints, parts = [""], Path(os.path.relpath(path, root or ".")).parts
        if "\\" in path:
            hints.append("; its name has backslashes, as Windows writes them: write /")
        for i in range(1, len(parts) if root else 0):
            if os.path.isfile(os.path.join(root, *parts[i:])):
                repeated = "/".join([*parts[:i], ""])
                hints.append(f"; the json's file names repeat the folder {repeated}: take it out")
        missing = f"photo {path} is missing; restore it or take it out"
        return UnreadablePhotoError(f"{missing}{hints[-1]}")
    reason = " ".join(str(error).split()).replace(repr(path), "").strip()
    return UnreadablePhotoError(f"photo {path} does not decode ({reason}); take it out")


def too_deep(path: str) -> str:
    """The mode of a photo of 16 or 32 bits, which Detectron2 would cut to white; "" for others."""
    with Image.open(path) as photo:
        return photo.mode if photo.mode[0] in "IF" else ""


def examine_photo(
    path: str, height: int, width: int, root: str = ""
) -> tuple[str, str, str] | None:
    """Level, kind and example of what is wrong with a photo, as training decodes it."""
    if not os.path.isfile(path):
        return FAILS, "photo missing", str(unreadable_photo(path, FileNotFoundError(), root))
    try:
        with Image.open(path) as photo:
            stored = photo.size[::-1]
            orientation = photo.getexif().get(ORIENTATION, 1)
        shape = read_image(path, "RGB").shape[:2]
        mode = too_deep(path)
    except Exception as error:  # a broken photo raises nearly anything
        return FAILS, "photo does not decode", str(unreadable_photo(path, error))
    if mode:
        line = f"photo {path} is {mode} and would be cut to white; convert it to 8 bits"
        return FAILS, "photo of 16 bits a channel", line
    turned = orientation in range(2, 9)
    line = f"photo {path} has EXIF orientation {orientation}"
    if shape == (height, width):
        if not turned:
            return None
        if shape != stored:
            return NOTE, AS_DISPLAYED, line
        line += (
            "; turn the pixels of such photos (mogrify -auto-orient) if they were annotated as "
            "displayed, or take the tag out (exiftool -Orientation=) if as stored"
        )
        return FAILS, NOBODY_KNOWS, line
    sizes = f"{shape[1]}x{shape[0]} pixels, the json says {width}x{height}"
    if turned and stored == (height, width):
        line += f" and is displayed with {sizes}; take the tag out or annotate what is displayed"
        return FAILS, "photo that EXIF turns, annotated as stored", line
    return FAILS, "photo of another size than the json says", f"photo {path} has {sizes}"
