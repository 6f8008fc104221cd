"""Published weight files: their table, ``isonet://NAME``, download, conversion."""

import difflib
import json
import logging
import os
import pickle
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from iopath.common.file_io import HTTPURLHandler, PathHandler, g_pathmgr, get_cache_dir

from ..errors import ISONetError
from ..files import sha256_of, write_hash, write_whole
from ..regularizer.penalty import conv_orthogonality
from .names import Checkpoint, StateDict, read_weights
from .reader import read_head

try:
    import detectron2.checkpoint  # noqa: F401  registers catalog://
    from detectron2.utils.file_io import PathManager
except ImportError:
    PathManager = g_pathmgr
    PathManager.register_handler(HTTPURLHandler(), allow_override=True)

logger = logging.getLogger(__name__)

TIMEOUT = 60.0  # seconds between bytes
SUFFIXES = (".safetensors", ".pth", ".pkl")


@dataclass(frozen=True)
class Record:
    """A published file: a row of model_zoo/weights.json, or model_zoo/detectors/NAME.json."""

    name: str
    network: str
    license: str
    source: str
    bytes: int | None
    sha256: str | None
    depth: int = 0
    dropout: bool = False
    top1: float = 0.0
    top1_source: str = ""
    dataset: str = ""
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def config_file(self) -> Path:
        return detectors_dir() / f"{self.name}.yaml"


_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / "zoo_records"
FOLDER = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "model_zoo"


def detectors_dir() -> Path:
    return FOLDER / "detectors"


def records() -> dict[str, Record]:
    """The table by name, ordered by network, depth and dropout."""
    rows = json.loads((FOLDER / "weights.json").read_text())
    return {row["name"]: Record(**row) for row in rows}


def detector_records() -> dict[str, Record]:
    """The trained detectors by name."""
    paths = sorted(detectors_dir().glob("*.json"))
    return {path.stem: Record(**json.loads(path.read_text())) for path in paths}


def get_record(name: str) -> Record:
    """What is known of an entry."""
    known = {**records(), **detector_records()}
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.0)[0]
        raise ISONetError(f"the model zoo has no {name}; did you mean {near}?")
    return known[name]


def get_checkpoint(name: str) -> str:
    """Local path of an entry's weight file, as it was published, downloaded if needed."""
    record = get_record(name)
    if "://" in record.source:
        return str(fetch(record.source, f"{name}.pth", record.sha256, record.bytes))
    _check(Path(record.source), Path(record.source), record.sha256, None)
    return record.source


class ZooHandler(PathHandler):
    """``isonet://NAME`` and ``torchvision://resnet50``: entries under our names, for anybody."""

    def _get_supported_prefixes(self) -> list[str]:
        return ["isonet://", "torchvision://"]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        name = re.sub(r"^resnet(\d+)$", r"ResNet-\1", path.partition("://")[2])
        source = Path(get_checkpoint(name))
        if name in detector_records():
            return str(source)
        converted = source.with_name(f"{source.stem}.detectron2.pth")
        with FileLock(f"{converted}.lock"):
            if not converted.is_file() or converted.stat().st_mtime < source.stat().st_mtime:
                write_weights(read_weights(source), converted)
        return str(converted)


PathManager.register_handler(ZooHandler(), allow_override=True)


def cache_dir() -> Path:
    """``isonet_det`` in Detectron2's cache folder (``$FVCORE_CACHE``)."""
    return Path(get_cache_dir()) / "isonet_det"


def fetch(source: str, name: str, sha256: str | None = None, num_bytes: int | None = None) -> Path:
    """A file in the cache, downloaded if need be; its first hash is noted and checked later."""
    path = cache_dir() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        try:
            if path.is_file():
                _check(path, path, sha256, num_bytes)
                return path
            partial = path.with_name(f"{name}.download")
            partial.unlink(missing_ok=True)  # whole, but refused by its check
            _download(source, partial)
            _check(partial, path, sha256, num_bytes)
            os.replace(partial, path)
        except ISONetError as error:
            raise ISONetError(f"{error}; or fetch {source} by hand and put it at {path}") from error
    return path


def _download(source: str, destination: Path) -> None:
    import gdown

    logger.info("Downloading %s to %s", source, destination)
    quiet = not sys.stderr.isatty()  # a log file would fill with its bar
    try:
        gdown.download(
            source, str(destination), quiet, resume=True, timeout=TIMEOUT, use_cookies=False
        )
    except Exception as error:  # gdown and requests have many
        reason = " ".join(str(error).split()) or type(error).__name__
        text = f"{source}: unreachable or cut short ({reason}); run again to resume"
        raise ISONetError(text) from error


def _check(file: Path, path: Path, sha256: str | None, num_bytes: int | None) -> None:
    """See that a download, which will be at ``path``, is the file that is expected."""
    read_head(file)
    size, digest = file.stat().st_size, sha256_of(file)
    if num_bytes is not None and size != num_bytes:
        raise ISONetError(f"{file} has {size} bytes, expected {num_bytes}")
    note = path.with_name(f"{path.name}.sha256")
    if sha256 is None and not note.is_file():
        note.write_text(digest + "\n")
        logger.info("%s: recorded sha256 %s", path.name, digest)
    expected = sha256 or note.read_text().strip()
    if not digest.startswith(expected.lower()):
        raise ISONetError(f"{file} has sha256 {digest}, expected {expected}; delete it")


def _backbone_state(checkpoint: Checkpoint) -> StateDict:
    """The backbone and classifier alone, under our names without a prefix."""
    if not checkpoint.backbone:
        raise ISONetError("the file holds no ISONet or ResNet")
    names = checkpoint.backbone.items()
    return {short: checkpoint.state[name].contiguous().clone() for short, name in names}


def write_weights(checkpoint: Checkpoint, destination: str | Path) -> str:
    """Write a backbone (and classifier) under our names, and its hash, which is returned."""
    destination = Path(destination)
    state = _backbone_state(checkpoint)
    if destination.suffix not in SUFFIXES:
        raise ISONetError(f"{destination}: the suffix is one of {', '.join(SUFFIXES)}")
    # Stock Detectron2 matches the names by their ends then, so that one file fits a plain backbone
    # and one inside an FPN.
    beside = {"__author__": "isonet_det", "matching_heuristics": True, "source": checkpoint.source}
    with write_whole(destination) as f:
        if destination.suffix == ".pth":
            torch.save({"model": state, **beside}, f)
        elif destination.suffix == ".pkl":
            pickle.dump({"model": {n: t.numpy() for n, t in state.items()}, **beside}, f)
        else:
            from safetensors.torch import save

            f.write(save(state, metadata={"format": "pt", "network": str(checkpoint.network)}))
    return write_hash(destination)


def inspect(checkpoint: Checkpoint) -> list[str]:
    """What a weight file is, one fact a line."""
    state = _backbone_state(checkpoint)
    lines = [
        f"network: {checkpoint.network}",
        f"names: {checkpoint.source}",
        f"classes: {checkpoint.num_classes or 'no classifier'}",
        f"parameters: {sum(t.numel() for t in state.values()):,} in {len(state)} tensors",
        f"beside the backbone: {len(checkpoint.state) - len(state)} tensors",
    ]
    weights = [t.float() for n, t in state.items() if re.match(r"res.*(conv\d|cut)\.weight", n)]
    values = [conv_orthogonality(w).item() / min(w.shape[:2]) for w in weights]
    median = float(np.median(values or [0.0]))
    verdict = "far from isometric: trained without the regularizer, or random"
    if not any(values):
        verdict = "exactly 0: at Delta initialization, not trained"
    elif median < 0.1:
        verdict = "near-isometric, as after training with the regularizer"
    return [*lines, f"Gram penalty per channel: median {median:.3g} ({verdict})"]
