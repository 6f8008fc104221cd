"""Training checkpoints: written whole, with a checksum, and found again."""

import logging
import pickle
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

from ..errors import ISONetError
from ..files import sha256_of, write_whole
from .resume import check_resumable

logger = logging.getLogger(__name__)

BEST = "model_best"


class WholeCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer; a file is whole or not there, with a checksum beside it."""

    def save(self, name: str, **kwargs) -> None:
        """Write ``NAME.pth``; in the main process only."""
        if not self.save_dir or not self.save_to_disk:
            return
        path = Path(self.save_dir) / f"{name}.pth"
        note = Path(f"{path}.sha256")
        data = {"model": self.model.state_dict(), **kwargs}
        if getattr(self.model, "classes", None) is not None:
            data["classes"] = self.model.classes  # id and name of each
        data.update({key: value.state_dict() for key, value in self.checkpointables.items()})
        try:
            note.unlink(missing_ok=True)  # without one a file is read to see whether it is whole
            with write_whole(path) as f:
                torch.save(data, f)
            with write_whole(note) as f:
                f.write(f"{sha256_of(path)}  {path.name}\n".encode())
            if name != BEST:
                with write_whole(path.with_name("last_checkpoint")) as f:
                    f.write(path.name.encode())
        except (OSError, RuntimeError) as error:
            raise ISONetError(
                f"checkpoint {path} cannot be written: {str(error).splitlines()[0]}; free some "
                f"space and run again with --resume (whole: {self.newest_whole()})"
            ) from error
        logger.info("Saved %s", path)

    def _load_file(self, filename: str) -> dict[str, Any]:
        """The content of a checkpoint, which has to be this run's."""
        content = super()._load_file(filename)
        if "trainer" in self.checkpointables:
            check_resumable(content, filename, self.model, self.checkpointables["trainer"])
        return content

    def remove(self, name: str) -> None:
        """Delete a checkpoint and its checksum."""
        path = Path(self.save_dir) / f"{name}.pth"
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}.sha256").unlink(missing_ok=True)

    def newest_whole(self) -> str | None:
        """The checkpoint that ``last_checkpoint`` names, else of the latest iteration, if whole."""
        folder = Path(self.save_dir)
        last = folder / "last_checkpoint"
        latest = last.read_text().strip() if last.is_file() else ""
        paths = [p for p in folder.glob("model_*.pth") if p.stem != BEST]
        for path in sorted(paths, key=lambda p: (p.name == latest, p.stem), reverse=True):
            reason = _broken(path)
            if reason is None:
                return str(path)
            logger.warning("Passing over the checkpoint %s: %s", path, reason)
        return None


def _broken(path: Path) -> str | None:
    note = path.with_name(f"{path.name}.sha256")
    if note.is_file():
        expected = note.read_text().split()[:1]
        digest = sha256_of(path)
        return None if expected == [digest] else f"its sha256 is {digest}, not {expected}"
    # Stock Detectron2 writes no checksum: see whether it can be read.
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        return (str(error).splitlines() or ["it cannot be read"])[0]
    return None
