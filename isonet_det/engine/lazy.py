"""Training from Detectron2's lazy configs, by the loop of all runs."""

import argparse
import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import default_argument_parser
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from torch import nn

from ..cli import Help, command
from ..config import available_device, check_values, configs_dir, get_cfg
from ..data.checks import check_photos, check_registered
from ..data.register import class_records, open_set
from ..data.stream import (
    SeededDataset,
    check_loader,
    listed,
    mixed_seed,
    seed_everything,
    seeded_loader,
)
from ..errors import ISONetError
from ..modeling.execution import set_execution
from ..regularizer.loss import add_orthogonal_loss
from ..weights.loader import load_weights, resolve_weights
from .logs import log_to_screen
from .loop import TrainingLoop
from .processes import run_in_processes, together
from .set_up import hold_output_dir, set_up
from .step import flush_subnormals

# What messages call the yaml configs' keys, and what a lazy config calls them.
_KEYS = {
    "MODEL.WEIGHTS": "train.init_checkpoint",
    "OUTPUT_DIR": "train.output_dir",
    "SOLVER.MAX_ITER": "train.max_iter",
    "SOLVER.ON_NONFINITE": "train.on_nonfinite",
    "SOLVER.NONFINITE_LIMIT": "train.nonfinite_limit",
    "SOLVER.AMP.DTYPE": "train.amp.dtype",
    "MODEL.CHANNELS_LAST": "train.channels_last",
    "MODEL.COMPILE": "train.compile",
}


def find_lazy_config(name: str) -> str:
    """Path of a lazy config file, or of the ready one of that name (under ``configs/lazy``)."""
    for path in (name, str(configs_dir() / "lazy" / os.path.basename(name))):
        if os.path.isfile(path):
            return path
    raise ISONetError(f"lazy config file {name!r}: expected a .py file that is there")


def load_lazy_config(name: str, overrides: list[str]) -> Any:
    """A lazy config with ``key=value`` overrides, on a device that is there. It is run."""
    path = find_lazy_config(name)
    if not path.endswith(".py"):
        raise ISONetError(f"lazy config file: expected a .py file, got {name}")
    try:
        cfg = LazyConfig.load(path)
    except (ImportError, SyntaxError, NameError) as error:
        raise ISONetError(f"lazy config file {path}: {type(error).__name__}: {error}") from error
    try:
        cfg = LazyConfig.apply_overrides(cfg, overrides)
    except Exception as error:  # hydra and omegaconf have many
        raise ISONetError(f"overrides {overrides}: {' '.join(str(error).split())}") from error
    cfg.train.device = available_device(str(cfg.train.device), "train.device")
    return cfg


def build_lazy_model(cfg: Any) -> nn.Module:
    """The model of a lazy config on its device, with ``loss_ortho``."""
    model = instantiate(cfg.model).to(cfg.train.device)
    set_execution(model, cfg.train.get("channels_last", False), cfg.train.get("compile", False))
    order = cfg.dataloader.get("train", {}).get("mapper", {}).get("image_format")
    for part in model.modules():  # for the check of the weights' pixels
        if hasattr(part, "pixels"):
            part.pixels = (order, None, None)
    coeff = cfg.train.get("ortho_coeff", 0)
    if coeff > 0:
        add_orthogonal_loss(model, coeff)
    return model


def build_lazy_loader(cfg: Any, seed: int) -> Any:
    """The training loader, in an order that resumes exactly; a loader of others as it is."""
    node = cfg.dataloader.train
    if not _calls(node, build_detection_train_loader):
        return instantiate(node)
    grouped = node.get("aspect_ratio_grouping", True)
    records, portrait = listed(instantiate(node.dataset), grouped)

    def make_sampler(sampler_seed: int) -> Iterator[int]:
        seed_everything(sampler_seed)  # what a sampler without a seed of its own draws from
        if node.get("sampler") is None:
            return iter(TrainingSampler(len(records), seed=sampler_seed))
        return iter(instantiate(node.sampler))

    return seeded_loader(
        records,
        instantiate(node.mapper),
        make_sampler,
        portrait=portrait,
        seed=seed,
        batch_size=node.total_batch_size // comm.get_world_size(),
        num_workers=node.get("num_workers", 0),
    )


def _calls(node: Any, function: Callable[..., Any]) -> bool:
    return node.get("_target_") in (function, f"{function.__module__}.{function.__qualname__}")


def _names(cfg: Any, split: str) -> list[str]:
    """The data sets that a loader names; [] where there is none, or it is of another kind."""
    names = cfg.dataloader.get(split, {}).get("dataset", {}).get("names", ())
    return [names] if isinstance(names, str) else list(names)


def open_sets(cfg: Any, train: bool, classes: Sequence[str] | None = None) -> None:
    """Open and check the data sets, in the order of ``classes`` or of the first set's."""
    reference = "the checkpoint"
    for name in dict.fromkeys([*(_names(cfg, "train") if train else ()), *_names(cfg, "test")]):
        check_registered(name)
        data = open_set(name, classes, reference)
        if data is not None:
            check_photos(data)
            if classes is None and train:
                classes, reference = data.class_names, f"data set {name}"


def evaluate(cfg: Any, model: nn.Module) -> Any:
    """Evaluate on the config's test set, if it has an evaluator."""
    if "evaluator" not in cfg.dataloader:
        return None
    loader, evaluator = (instantiate(cfg.dataloader[key]) for key in ("test", "evaluator"))
    results = inference_on_dataset(model, loader, evaluator)
    print_csv_format(results)
    return results


def run_keys(train: Any) -> CfgNode:
    cfg, keeper = get_cfg(), train.checkpointer
    cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS = train.output_dir, train.init_checkpoint
    cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD = train.max_iter, train.eval_period
    cfg.SOLVER.CHECKPOINT_PERIOD = keeper.period
    cfg.SOLVER.CHECKPOINT_KEEP = keeper.get("max_to_keep") or 0
    cfg.MODEL.ISONET.SUMMARY_PERIOD = train.get("summary_period", 0)
    cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE = train.amp.enabled, train.amp.get("dtype", "")
    for key in ("ON_NONFINITE", "NONFINITE_LIMIT"):
        cfg.SOLVER[key] = train.get(key.lower(), cfg.SOLVER[key])
    cfg.DATASETS.TEST = ()
    return cfg


class LazyTrainer(TrainingLoop):
    """:class:`isonet_det.engine.loop.TrainingLoop` of a lazy config, ``lazy_cfg``."""

    def __init__(self, cfg: Any) -> None:
        flush_subnormals()
        self.lazy_cfg = cfg
        seed = cfg.train.get("seed", -1)
        seed = seed if seed >= 0 else comm.shared_random_seed()
        keys = run_keys(cfg.train)
        check_values(keys)
        super().__init__(keys, *together(self._build, seed), seed, **cfg.train.ddp)

    def _build(self, seed: int) -> tuple[nn.Module, Any, Any, Any]:
        cfg = self.lazy_cfg
        open_sets(cfg, train=True)
        seed_everything(mixed_seed(seed, "model"))
        model = build_lazy_model(cfg)
        names = _names(cfg, "train")
        model.classes = class_records(names[0]) if names else None  # type: ignore[assignment]
        cfg.optimizer.params.model = model
        optimizer = instantiate(cfg.optimizer)
        del cfg.optimizer.params.model  # config.yaml does not want it
        scheduler = LRMultiplier(optimizer, instantiate(cfg.lr_multiplier), cfg.train.max_iter)
        loader = build_lazy_loader(cfg, seed)
        if isinstance(getattr(loader, "dataset", None), SeededDataset):
            check_loader(loader, seed)
        return model, optimizer, loader, scheduler

    def data_names(self) -> list[str]:
        return [*_names(self.lazy_cfg, "train"), *_names(self.lazy_cfg, "test")]

    def evaluate_now(self) -> Any:
        self._last_eval_results = evaluate(self.lazy_cfg, self.model)
        return self._last_eval_results


def _trained_model(cfg: Any) -> nn.Module:
    model = build_lazy_model(cfg)
    load_weights(model, cfg.train.init_checkpoint, whole=True)
    classes: Any = getattr(model, "classes", None)
    open_sets(cfg, train=False, classes=classes and [record["name"] for record in classes])
    return model


def run(args: argparse.Namespace, cfg: Any = None) -> Any:
    """Train, or evaluate with ``--eval-only``; in every process."""
    try:
        cfg = cfg or load_lazy_config(args.config_file, args.opts)
        if args.eval_only:
            model = together(_trained_model, cfg)
            return evaluate(set_up(cfg, args), model)
        trainer = LazyTrainer(cfg)
        with hold_output_dir(cfg.train.output_dir):
            trainer.resume_or_load(resume=args.resume)
            set_up(cfg, args)
            return trainer.train()
    except ISONetError as error:
        names = "|".join(map(re.escape, _KEYS))
        error.args = (re.sub(rf"\b({names})\b", lambda m: _KEYS[m[1]], str(error)),)
        raise


def _prepare(args: argparse.Namespace) -> Any:
    """The config of a command line. What is wrong with names is said before what takes longer."""
    cfg = load_lazy_config(args.config_file, args.opts)
    for name in [*_names(cfg, "train"), *_names(cfg, "test")]:
        check_registered(name)
    if cfg.train.init_checkpoint and not args.resume:  # which may not need it
        resolve_weights(cfg.train.init_checkpoint)
    return cfg if args.num_gpus * args.num_machines == 1 else None


@command
def main(argv: list[str] | None = None) -> None:
    example = "isonet-det train-lazy --config-file mask_rcnn_risonet50_fpn.py train.max_iter=900"
    parser = default_argument_parser(f"example:\n  {example}")
    parser.formatter_class = Help
    args = parser.parse_args(argv)
    flush_subnormals()
    log_to_screen(int(os.environ.get("RANK", 0)))
    args.config_file = find_lazy_config(args.config_file)
    run_in_processes(functools.partial(run, args), args, functools.partial(_prepare, args))
