"""Weight files from the network into Detectron2's cache folder: whole and checked, or not."""

import logging
import os
import sys
from pathlib import Path

import gdown
import requests
from filelock import FileLock
from gdown.exceptions import DownloadError, FileURLRetrievalError
from iopath.common.file_io import get_cache_dir

from ..errors import ISONetError
from ..files import sha256_of

logger = logging.getLogger(__name__)

TIMEOUT = 60.0  # seconds between bytes


def cache_dir() -> Path:
    """``isonet_det`` in Detectron2's cache folder (``$FVCORE_CACHE``)."""
    return Path(get_cache_dir()) / "isonet_det"


def fetch(source: str, name: str, sha256: str | None = None, num_bytes: int | None = None) -> Path:
    """The local copy of a file, downloaded if there is none.

    Of several processes one downloads while the others wait. A broken transfer is resumed at
    the next call. The file appears under its name only when it is whole and passed its check.

    Args:
        source: http(s) address; Google Drive's links are understood.
        name: the file's name in the cache.
        sha256: expected hash in hex, whole or its first digits; without one the hash is
            recorded at the first download (``NAME.sha256``) and checked from then on.
        num_bytes: expected size.

    Raises:
        ISONetError: no network, refused (Google's quota page), cut short, or another file than
            expected; the message names the address and where to put a file fetched by hand.
    """
    path = cache_dir() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        partial = path.with_name(f"{name}.download")
        if not path.is_file():
            logger.info("Downloading %s to %s", source, path)
            _download(source, partial, path)
            _check(partial, source, path, sha256, num_bytes)
            os.replace(partial, path)
        else:
            _check(path, source, path, sha256, num_bytes)
    return path


def _by_hand(source: str, path: Path) -> str:
    return f"; fetch {source} by hand and put it at {path}"


def _download(source: str, partial: Path, path: Path) -> None:
    hand = _by_hand(source, path)
    partial.unlink(missing_ok=True)  # whole, but refused by its check
    try:
        gdown.download(
            source,
            str(partial),
            resume=True,
            timeout=TIMEOUT,
            use_cookies=False,
            # One bar on the terminal; a log file would fill with it.
            quiet=not sys.stderr.isatty(),
        )
    except FileURLRetrievalError as error:
        reason = " ".join(str(error).split())
        raise ISONetError(f"Google Drive did not hand out the file ({reason}){hand}") from error
    except requests.HTTPError as error:
        code = error.response.status_code
        raise ISONetError(f"the server answered {code} {error.response.reason}{hand}") from error
    except (DownloadError, requests.exceptions.ChunkedEncodingError) as error:
        reason = " ".join(str(error).split())
        raise ISONetError(
            f"the download was cut short ({reason}); run again to resume it{hand}"
        ) from error
    except (requests.RequestException, ValueError) as error:
        reason = type(error).__name__
        raise ISONetError(f"no download: the address cannot be reached ({reason}){hand}") from error
    except OSError as error:
        raise ISONetError(f"{path} cannot be written: {error.strerror}") from error


def _check(file: Path, source: str, path: Path, sha256: str | None, num_bytes: int | None) -> None:
    hand = _by_hand(source, path)
    with open(file, "rb") as f:
        page = f.read(512).lstrip()[:1] == b"<"
    if page:
        file.unlink()
        raise ISONetError(
            "the answer was a web page and not a weight file (on Google Drive: its download quota "
            f"is exceeded, or the link is gone){hand}"
        )
    size = file.stat().st_size
    if num_bytes is not None and size != num_bytes:
        raise ISONetError(f"{file} has {size} bytes, expected {num_bytes}{hand}")
    note = path.with_name(f"{path.name}.sha256")
    if sha256 is None and note.is_file():
        sha256 = note.read_text().strip()
    digest = sha256_of(file)
    if sha256 is None:
        note.write_text(digest + "\n")
        logger.info("%s: recorded sha256 %s", path.name, digest)
    elif not digest.startswith(sha256.lower()):
        raise ISONetError(
            f"{file} has sha256 {digest}, expected {sha256}: it is another file or broken; delete "
            f"it{hand}"
        )
