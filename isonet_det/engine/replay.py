"""The step of a dump, run again."""

import functools
from typing import Any

import torch
import yaml
from torch import nn

from ..config import get_cfg, merge_values
from ..errors import ISONetError
from ..modeling.classifier import is_classifier
from ..weights.reader import read_file
from .divergence import first_nonfinite
from .lazy import build_lazy_loader, build_lazy_model, load_lazy_config
from .pretrainer import PretrainTrainer
from .trainer import Trainer


def replay(path: str) -> str:
    """Run the step of a dump again, on the CPU.

    Args:
        path: a file of :func:`isonet_det.engine.divergence.write_dump`; its data sets must be
            registered.

    Returns:
        what was not finite when it was written, and what is now.

    Raises:
        ISONetError: not such a file.
    """
    dump = read_file(path)
    recipe = {"config", "lazy config"} & set(dump)
    absent = {"model", "keys", "seed", "message"} - set(dump)
    if absent or not recipe:
        raise ISONetError(
            f"{path}: expected a nonfinite_ITERATION.pth that a run has left, found no "
            f"{', '.join(sorted(absent)) or 'config'} in it"
        )
    model, dataset = (_from_lazy if "lazy config" in recipe else _from_yaml)(dump)
    model.load_state_dict(dump["model"])
    model.train()
    batch = [dataset[tuple(key)] for key in dump["keys"]]
    amp = dump.get("amp", "")
    autocast = functools.partial(
        torch.autocast, "cpu", dtype=getattr(torch, amp or "bfloat16"), enabled=bool(amp)
    )
    message = first_nonfinite(model, batch, dump["seed"], autocast) or "nothing"
    return f"then: {dump['message']}\nnow, on the CPU: first not finite: {message}"


def _from_yaml(dump: dict[str, Any]) -> tuple[nn.Module, Any]:
    cfg = get_cfg()
    merge_values(cfg, yaml.safe_load(dump["config"]), "the dump")
    cfg.MODEL.DEVICE, cfg.DATALOADER.NUM_WORKERS = "cpu", 0
    trainer = PretrainTrainer if is_classifier(cfg) else Trainer
    return trainer.build_model(cfg), trainer.build_train_loader(cfg).dataset


def _from_lazy(dump: dict[str, Any]) -> tuple[nn.Module, Any]:
    overrides = [*dump["overrides"], "train.device=cpu", "dataloader.train.num_workers=0"]
    cfg = load_lazy_config(dump["lazy config"], overrides)
    return build_lazy_model(cfg), build_lazy_loader(cfg, 0).dataset
