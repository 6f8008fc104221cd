"""Training from Detectron2's lazy configs."""

import argparse
import logging
import os
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import create_ddp_model, default_setup, default_writers, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import nn

from ..config import configs_dir
from ..data.checks import check_registered
from ..errors import ISONetError
from ..regularizer.loss import add_orthogonal_loss
from ..weights.loader import load_weights, resolve_weights
from .checkpointer import WholeCheckpointer
from .divergence import guard_nonfinite
from .hooks import LOG_PERIOD
from .prepare import check_processes
from .step import Step

logger = logging.getLogger(__name__)


def find_lazy_config(name: str) -> str:
    """Path of a lazy config file, or of the ready one of that name (under ``configs/lazy``).

    Raises:
        ISONetError: there is no such file.
    """
    for path in (name, str(configs_dir() / "lazy" / os.path.basename(name))):
        if os.path.isfile(path):
            return path
    raise ISONetError(f"config file {name} is not there")


def prepare(args: argparse.Namespace) -> None:
    """Find out what is wrong before any process, model or data set is made.

    Raises:
        ISONetError: the first thing that is wrong.
    """
    cfg = load_lazy_config(args.config_file, args.opts)
    check_processes(str(cfg.train.device), args)
    for split in ("train", "test"):
        # Somebody's own config may have no test set, or a data set of another kind.
        names = cfg.dataloader.get(split, {}).get("dataset", {}).get("names", ())
        for name in [names] if isinstance(names, str) else names:
            check_registered(name)
    if cfg.train.init_checkpoint and not args.resume:  # which may not need it
        resolve_weights(cfg.train.init_checkpoint)


def load_lazy_config(name: str, overrides: list[str]) -> Any:
    """A lazy config file (:func:`find_lazy_config`) with ``key=value`` overrides. A lazy config is
    Python: it runs.

    Raises:
        ISONetError: there is no such file, it is no Python, or an override cannot be read.
    """
    path = find_lazy_config(name)
    if not path.endswith(".py"):
        raise ISONetError(f"{name} is no lazy config: those are .py files")
    cfg = LazyConfig.load(path)
    try:
        return LazyConfig.apply_overrides(cfg, overrides)
    except Exception as error:  # hydra and omegaconf have many
        raise ISONetError(f"overrides {overrides}: {' '.join(str(error).split())}") from error


def build_lazy_model(cfg: Any) -> nn.Module:
    """The model of a lazy config on its device, with ``loss_ortho`` if ``train.ortho_coeff``."""
    device = cfg.train.device
    if str(device).startswith("cuda") and not torch.cuda.is_available():
        logger.warning("No CUDA GPU here: train.device is the CPU.")
        cfg.train.device = device = "cpu"
    model = instantiate(cfg.model).to(device)
    coeff = cfg.train.get("ortho_coeff", 0)
    if coeff > 0:
        add_orthogonal_loss(model, coeff)
    return model


def evaluate(cfg: Any, model: nn.Module) -> Any:
    """Evaluate on the config's test set, if it has an evaluator."""
    if "evaluator" not in cfg.dataloader:
        return None
    results = inference_on_dataset(
        model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    )
    print_csv_format(results)
    return results


def train(cfg: Any, resume: bool) -> None:
    """Detectron2's lazy training with :class:`isonet_det.step.Step`, strict weights and whole
    checkpoints. The data order starts over at a resume, as in Detectron2."""
    model = build_lazy_model(cfg)
    guard_nonfinite(model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    ddp = dict(cfg.train.ddp)
    if next(model.parameters()).device.type == "cpu":
        ddp["device_ids"] = None
    wrapped = create_ddp_model(model, **ddp)
    loader = instantiate(cfg.dataloader.train)
    seed = comm.shared_random_seed()
    trainer = Step(wrapped, loader, optimizer, amp=cfg.train.amp.enabled, seed=seed)
    checkpointer = WholeCheckpointer(model, cfg.train.output_dir, trainer=trainer)

    def write_losses(step: Step) -> None:
        if (step.iter + 1) % LOG_PERIOD == 0 or step.iter + 1 == step.max_iter:
            step.write_losses()

    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.CallbackHook(after_step=write_losses),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer),
            hooks.EvalHook(cfg.train.eval_period, lambda: evaluate(cfg, wrapped)),
            hooks.PeriodicWriter(
                default_writers(cfg.train.output_dir, cfg.train.max_iter), LOG_PERIOD
            )
            if comm.is_main_process()
            else None,
        ]
    )
    start = 0
    path = checkpointer.newest_whole() if resume and comm.is_main_process() else None
    path = comm.all_gather(path)[0]
    if path is None:
        load_weights(model, cfg.train.init_checkpoint)
    else:
        checkpointer.load(path)
        start = trainer.iter + 1
    trainer.train(start, cfg.train.max_iter)


def run(args: argparse.Namespace) -> Any:
    """Train, or evaluate with ``--eval-only``; in every process."""
    args.config_file = find_lazy_config(args.config_file)
    cfg = load_lazy_config(args.config_file, args.opts)
    default_setup(cfg, args)
    if not args.eval_only:
        return train(cfg, args.resume)
    model = build_lazy_model(cfg)
    load_weights(model, cfg.train.init_checkpoint, whole=True)
    return evaluate(cfg, model)
