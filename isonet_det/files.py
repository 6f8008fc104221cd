"""Files that are written whole or not at all."""

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


def cache_dir() -> Path:
    """``$ISONET_DET_CACHE``, or ``isonet_det`` in the user's cache or among temporary files."""
    folder = os.environ.get("ISONET_DET_CACHE")
    if folder:
        return Path(folder)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    try:
        os.makedirs(home, exist_ok=True)
        if os.access(home, os.W_OK):
            return Path(home, "isonet_det")
    except OSError:
        pass
    return Path(tempfile.gettempdir(), f"isonet_det-{os.getuid()}")  # no home, as in a container


def sha256_of(path: str | Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def write_file(path: str | Path, content: str | bytes) -> None:
    with write_whole(path) as f:
        f.write(content.encode() if isinstance(content, str) else content)


def write_hash(path: Path) -> str:
    """Write a file's sha256 beside it, as ``sha256sum -c`` reads it, and return it."""
    digest = sha256_of(path)
    write_file(f"{path}.sha256", f"{digest}  {path.name}\n")
    return digest


def write_picture(path: str | Path, pixels: Any) -> None:
    """Write (H, W, 3) RGB pixels as PNG, under any name that the disk takes."""
    import cv2

    _, encoded = cv2.imencode(".png", pixels[:, :, ::-1])
    write_file(path, encoded.tobytes())


@contextlib.contextmanager
def write_whole(path: str | Path) -> Iterator[BinaryIO]:
    """A file that takes its name, synced to the disk, when the block ends without an exception."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    try:
        handle, work = tempfile.mkstemp(prefix=".writing-", dir=path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        with os.fdopen(handle, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.chmod(work, 0o644)
        os.replace(work, path)
    finally:
        Path(work).unlink(missing_ok=True)
