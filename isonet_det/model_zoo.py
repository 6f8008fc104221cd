"""Ready configs and the records of pre-trained weights, like Detectron2's ``model_zoo``."""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from .config import configs_dir, find_config_file, get_cfg, merge_config_file
from .errors import IsonetError
from .weights.download import fetch


@dataclass(frozen=True)
class Record:
    """One weight file. ``sha256`` may hold only the first digits; None: not known."""

    name: str
    network: str
    depth: int
    dropout: bool
    top1: float
    top1_source: str
    channel_order: str
    pixel_mean: list[float]
    pixel_std: list[float]
    licence: str
    source: str
    bytes: int | None
    sha256: str | None

    @property
    def file_name(self) -> str:
        """Name in the cache folder."""
        return f"{self.name}.pth"


def records_dir() -> Path:
    """The folder of the records: inside the installed package, or in a clone."""
    package = Path(__file__).resolve().parent
    inside = package / "zoo_records"
    return inside if inside.is_dir() else package.parent / "model_zoo"


def records() -> dict[str, Record]:
    """Every record by its name, ordered by network, depth and dropout."""
    found = []
    for path in records_dir().glob("*.json"):
        with open(path) as f:
            found.append(Record(**json.load(f)))
    found.sort(key=lambda r: (r.network, r.depth, r.dropout))
    return {record.name: record for record in found}


def get_record(name: str) -> Record:
    """The record of a weight file.

    Raises:
        IsonetError: there is none of that name.
    """
    known = records()
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.0)[0]
        raise IsonetError(f"the model zoo has no {name}; did you mean {near}?")
    return known[name]


def get_checkpoint(name: str) -> str:
    """Local path of a zoo entry's weight file (``R-ISONet-50-dropout``), downloaded if needed.

    Raises:
        IsonetError: no such entry, or its download failed (:func:`isonet_det.download.fetch`).
    """
    record = get_record(name)
    return str(fetch(record.source, record.file_name, record.sha256, record.bytes))


def list() -> Sequence[str]:
    """Names of the ready configs, as :func:`get_config` takes them."""
    folder = configs_dir()
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.yaml"))
    return [name for name in names if "Base-" not in name]


def get_config(name: str) -> CfgNode:
    """The full config of a ready file such as ``mask_rcnn_risonet50_fpn.yaml``.

    Raises:
        IsonetError: there is none of that name.
    """
    cfg = get_cfg()
    merge_config_file(cfg, find_config_file(name))
    return cfg


def get(name: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """The detector of a ready config, in training mode as Detectron2's ``model_zoo.get``.

    Args:
        name: as for :func:`get_config`.
        trained: fill it from the config's ``MODEL.WEIGHTS`` (this project's are ImageNet
            backbones: heads stay at their initial values); False leaves it initialized.
        device: where it is built; None for the config's own, or the CPU without a GPU.

    Raises:
        IsonetError: no such config, or weights that do not fit.
    """
    from .weights.loader import load_weights

    cfg = get_config(name)
    if device is not None:
        cfg.MODEL.DEVICE = device
    elif not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    if trained:
        load_weights(model, cfg.MODEL.WEIGHTS)
    return model


def readme_tables() -> str:
    """The tables of model_zoo/README.md, made from the records."""
    lines = []
    for title, ours in (("The authors' networks", True), ("torchvision's ResNets", False)):
        lines += [f"### {title}", ""]
        lines += ["| name | depth | dropout | top-1 | bytes | sha256 | licence | file |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        for record in records().values():
            if ("ISONet" in record.network) == ours:
                lines.append(
                    f"| `{record.name}` | {record.depth} | {'yes' if record.dropout else 'no'} | "
                    f"{record.top1:.2f} | {record.bytes or 'not known'} | "
                    f"{record.sha256 or 'not known'} | {record.licence} | "
                    f"[link]({record.source}) |"
                )
        lines.append("")
    return "\n".join(lines)
