"""Training from Detectron2's lazy configs, by the loop of all runs."""

import argparse
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

from detectron2.config import LazyConfig, instantiate
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import default_setup, default_writers, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import nn

from ..config import available_device, configs_dir
from ..data.checks import check_registered
from ..data.sets import load
from ..data.stream import (
    listed_records,
    mixed_seed,
    regular_records,
    seed_everything,
    seeded_loader,
)
from ..errors import ISONetError
from ..modeling.execution import set_execution
from ..regularizer.loss import add_orthogonal_loss
from ..weights.loader import load_weights, resolve_weights
from .hooks import LOG_PERIOD
from .loop import RunOptions, TrainingLoop
from .processes import check_processes
from .step import StepOptions, flush_subnormals

logger = logging.getLogger(__name__)


def find_lazy_config(name: str) -> str:
    """Path of a lazy config file, or of the ready one of that name (under ``configs/lazy``).

    Raises:
        ISONetError: there is no such file.
    """
    for path in (name, str(configs_dir() / "lazy" / os.path.basename(name))):
        if os.path.isfile(path):
            return path
    raise ISONetError(f"lazy config file {name} not found")


def prepare(args: argparse.Namespace) -> None:
    """Find out what is wrong before any process, model or data set is made.

    Raises:
        ISONetError: the first thing that is wrong.
    """
    cfg = load_lazy_config(args.config_file, args.opts)
    check_processes(args)
    # Somebody's own config may have no test set, or a data set of another kind.
    names = [n for split in ("train", "test") for n in _names(cfg.dataloader.get(split, {}))]
    for name in names:
        check_registered(name)
    if cfg.train.init_checkpoint and not args.resume:  # which may not need it
        resolve_weights(cfg.train.init_checkpoint)
    for name in names:
        load(name)  # which checks it, once for all processes


def load_lazy_config(name: str, overrides: list[str]) -> Any:
    """A lazy config file (:func:`find_lazy_config`) with ``key=value`` overrides, on a device that
    is there. A lazy config is Python: it runs.

    Raises:
        ISONetError: there is no such file, it is no Python, or an override cannot be read.
    """
    path = find_lazy_config(name)
    if not path.endswith(".py"):
        raise ISONetError(f"lazy config file: expected a .py file, got {name}")
    cfg = LazyConfig.load(path)
    try:
        cfg = LazyConfig.apply_overrides(cfg, overrides)
    except Exception as error:  # hydra and omegaconf have many
        raise ISONetError(f"overrides {overrides}: {' '.join(str(error).split())}") from error
    cfg.train.device = available_device(str(cfg.train.device), "train.device")
    return cfg


def build_lazy_model(cfg: Any) -> nn.Module:
    """The model of a lazy config on its device, with ``loss_ortho`` if ``train.ortho_coeff``;
    ``train.channels_last`` and ``train.compile`` are the yaml configs' keys."""
    model = instantiate(cfg.model).to(cfg.train.device)
    set_execution(model, cfg.train.get("channels_last", False), cfg.train.get("compile", False))
    coeff = cfg.train.get("ortho_coeff", 0)
    if coeff > 0:
        add_orthogonal_loss(model, coeff)
    return model


def build_lazy_loader(cfg: Any, seed: int) -> Any:
    """The training loader of a lazy config: what ``build_detection_train_loader`` is given there,
    in an order that resumes exactly; any other loader as it is.

    Args:
        cfg: the config.
        seed: of order and augmentations.
    """
    node = cfg.dataloader.train
    if not _calls(node, build_detection_train_loader):
        return instantiate(node)
    records, portrait = _records(node.dataset)

    def make_sampler(sampler_seed: int) -> Iterator[int]:
        seed_everything(sampler_seed)  # what a sampler without a seed of its own draws from
        if node.get("sampler") is None:
            return iter(TrainingSampler(len(records), seed=sampler_seed))
        return iter(instantiate(node.sampler))

    grouped = node.get("aspect_ratio_grouping", True)
    return seeded_loader(
        records,
        instantiate(node.mapper),
        make_sampler,
        portrait=[bool(grouped and p) for p in portrait],
        seed=seed,
        batch_size=node.total_batch_size // comm.get_world_size(),
        num_workers=node.get("num_workers", 0),
    )


def _calls(node: Any, function: Callable[..., Any]) -> bool:
    """Whether a node of a lazy config is a call of ``function``."""
    return node.get("_target_") in (function, f"{function.__module__}.{function.__qualname__}")


def _names(node: Any) -> list[str]:
    """The data sets that a loader's node names; [] where it is of another kind."""
    names = node.get("dataset", {}).get("names", ())
    return [names] if isinstance(names, str) else list(names)


def _records(node: Any) -> tuple[Any, list[bool]]:
    """The records of a ``get_detection_dataset_dicts``, in their regular form where they are a COCO
    json's; per record whether it is portrait."""
    options = {key: value for key, value in node.items() if key not in ("_target_", "names")}
    least = options.pop("min_keypoints", 0)
    empty = options.pop("filter_empty", True)
    if _calls(node, get_detection_dataset_dicts) and not any(options.values()):
        regular = regular_records(_names({"dataset": node}), empty, least)
        if regular is not None:
            return regular
    return listed_records(instantiate(node))


def evaluate(cfg: Any, model: nn.Module) -> Any:
    """Evaluate on the config's test set, if it has an evaluator."""
    if "evaluator" not in cfg.dataloader:
        return None
    node = cfg.dataloader.test
    if _calls(node, build_detection_test_loader):
        parts = {k: instantiate(v) for k, v in node.items() if k not in ("_target_", "dataset")}
        parts["dataset"] = _records(node.dataset)[0]
        loader = build_detection_test_loader(**parts)
    else:
        loader = instantiate(node)
    results = inference_on_dataset(model, loader, instantiate(cfg.dataloader.evaluator))
    print_csv_format(results)
    return results


class LazyTrainer(TrainingLoop):
    """:class:`isonet_det.engine.loop.TrainingLoop` of a lazy config.

    Args:
        cfg: the config.
        config_file, overrides: where it comes from, for a dump.
    """

    def __init__(self, cfg: Any, config_file: str, overrides: list[str]) -> None:
        flush_subnormals()
        seed = cfg.train.get("seed", -1)
        seed = seed if seed >= 0 else comm.shared_random_seed()
        seed_everything(mixed_seed(seed, "model"))
        model = build_lazy_model(cfg)
        cfg.optimizer.params.model = model
        checkpointer = cfg.train.checkpointer
        super().__init__(
            model,
            instantiate(cfg.optimizer),
            build_lazy_loader(cfg, seed),
            RunOptions(
                output_dir=cfg.train.output_dir,
                max_iter=cfg.train.max_iter,
                weights=cfg.train.init_checkpoint,
                checkpoint_period=checkpointer.period,
                checkpoint_keep=checkpointer.get("max_to_keep") or 0,
                summary_period=cfg.train.get("summary_period", 0),
                eval_period=cfg.train.eval_period,
                recipe={"lazy config": os.path.abspath(config_file), "overrides": overrides},
            ),
            StepOptions(cfg.train.amp.enabled, cfg.train.amp.get("dtype", ""), seed=seed),
            **cfg.train.ddp,
        )

        def test() -> Any:
            self._last_eval_results = evaluate(cfg, self.model)
            return self._last_eval_results

        writers = default_writers(cfg.train.output_dir, cfg.train.max_iter)
        self.register_hooks(
            [
                hooks.IterationTimer(),
                *self.run_hooks(),
                hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
                hooks.EvalHook(cfg.train.eval_period, test),
                hooks.PeriodicWriter(writers, LOG_PERIOD) if comm.is_main_process() else None,
            ]
        )


def run(args: argparse.Namespace) -> Any:
    """Train, or evaluate with ``--eval-only``; in every process."""
    args.config_file = find_lazy_config(args.config_file)
    cfg = load_lazy_config(args.config_file, args.opts)
    default_setup(cfg, args)
    if args.eval_only:
        model = build_lazy_model(cfg)
        load_weights(model, cfg.train.init_checkpoint, whole=True)
        return evaluate(cfg, model)
    trainer = LazyTrainer(cfg, args.config_file, args.opts)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()
