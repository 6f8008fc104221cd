"""``isonet://`` for Detectron2's own checkpointer."""

from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathManager
from filelock import FileLock
from iopath.common.file_io import PathHandler

from .names import read_weights
from .publish import write_weights
from .records import get_checkpoint

PREFIX = "isonet://"


def detectron2_checkpoint(name: str) -> str:
    """Local path of a zoo entry under Detectron2's names, which stock ``DetectionCheckpointer``
    matches with a plain backbone and with one inside a detector; converted once.

    Raises:
        ISONetError: no such entry, or its download failed.
    """
    source = Path(get_checkpoint(name))
    converted = source.with_name(f"{source.stem}.detectron2.pth")
    with FileLock(f"{converted}.lock"):
        if not converted.is_file() or converted.stat().st_mtime < source.stat().st_mtime:
            write_weights(read_weights(source), converted)
    return str(converted)


class ZooHandler(PathHandler):
    """The paths ``isonet://NAME``: :func:`detectron2_checkpoint`."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return detectron2_checkpoint(path.removeprefix(PREFIX))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        return open(self._get_local_path(path), mode)


def register_handler() -> None:
    """Let Detectron2 resolve ``isonet://NAME``. Calling it twice is harmless."""
    PathManager.register_handler(ZooHandler(), allow_override=True)
