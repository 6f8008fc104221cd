"""The config keys of this package, added to Detectron2's."""

import ast
import contextlib
import dataclasses
import difflib
import importlib
import io
import logging
import os
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2 import modeling
from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.utils.logger import log_first_n

from .errors import ISONetError
from .modeling import FAMILIES


def add_isonet_config(cfg: CfgNode) -> None:
    """Add this package's keys to a Detectron2 config, in place. Calling it twice is harmless."""
    if "ISONET" in cfg.MODEL:
        return
    cfg.MODEL.ISONET = CfgNode()
    # Which networks: "isonet" (ISONet, R-ISONet, and the ResNets that the paper varies them from)
    # or "fixup" (Fixup ResNets, which the paper compares with).
    cfg.MODEL.ISONET.FAMILY = "isonet"
    for family in FAMILIES.values():
        for option in dataclasses.fields(family.options):  # explained there
            cfg.MODEL.ISONET[option.name.upper()] = option.default
    # gamma, the coefficient of the orthogonality penalty; 0 leaves the loss out; -1 is the
    # family's: 0 for "fixup" and 1e-4 for "isonet", which the paper states for ImageNet. It states
    # nothing for detection.
    cfg.MODEL.ISONET.ORTHO_COEFF = -1.0
    # Stages, such as ("res2", "res3"), whose maps are computed again in the backward pass instead
    # of kept: the same gradients, bit by bit, in less memory.
    cfg.MODEL.ISONET.CHECKPOINT_STAGES = ()
    # Every so many iterations penalties, SReLU's b and residual scalars are logged; 0: never.
    cfg.MODEL.ISONET.SUMMARY_PERIOD = 1000
    # Weights and maps in memory as (N, H, W, C).
    cfg.MODEL.CHANNELS_LAST = False
    # The backbone through torch.compile.
    cfg.MODEL.COMPILE = False
    # The type of mixed precision, "float16" (with a loss scaler) or "bfloat16" (without); "":
    # float16 on a GPU, as Detectron2, and bfloat16 on a CPU.
    cfg.SOLVER.AMP.DTYPE = ""
    # Learning rate of what a family trains slowly, relative to SOLVER.BASE_LR: the residual
    # scalars; of Fixup networks the scales and biases, the classifier's included.
    cfg.SOLVER.RES_MULTIPLIER_LR_FACTOR = 0.1
    # SOLVER.IMS_PER_BATCH images in that many micro-batches per optimizer step. Without
    # BatchNorm this is the same computation in less memory.
    cfg.SOLVER.ACCUMULATE_STEPS = 1
    # A loss or gradient that is not finite: "stop" the run, or "skip" the update, at most
    # NONFINITE_LIMIT times in a row.
    cfg.SOLVER.ON_NONFINITE = "stop"
    cfg.SOLVER.NONFINITE_LIMIT = 3
    # How many of the latest periodic checkpoints are kept; 0 keeps all.
    cfg.SOLVER.CHECKPOINT_KEEP = 3
    # How many photos (per process) may be unreadable before training stops.
    cfg.DATALOADER.UNREADABLE_LIMIT = 0

    # An exponential moving average of the weights, evaluated and saved beside them.
    cfg.MODEL.EMA = CfgNode({"ENABLED": False, "DECAY": 0.999})
    # A run ends when METRIC ("bbox/AP", as in metrics.json) has not been better than its best for
    # PATIENCE evaluations; "": it does not.
    cfg.SOLVER.EARLY_STOPPING = CfgNode({"METRIC": "", "PATIENCE": 5})
    # Whether an evaluation in training logs the losses on the first test set too, as val/*.
    cfg.TEST.VAL_LOSS = False
    # Whether --eval-only, and the end of a training, writes report.html.
    cfg.TEST.REPORT = False
    # Training augmentations, one after the other: presets ("default": Detectron2's INPUT keys;
    # "lsj", "color", "copy_paste") and Detectron2's transforms by name, alone or with arguments:
    # ["default", {"RandomRotation": {"angle": [-10, 10]}}].
    cfg.INPUT.AUGMENTATION = ["default"]
    # Where metrics go beside metrics.json: "tensorboard", "wandb", "mlflow".
    cfg.TRACKING = ["tensorboard"]
    add_pretrain_config(cfg)


def add_pretrain_config(cfg: CfgNode) -> None:
    """Add the keys that tools/pretrain.py alone reads, in place."""
    cfg.PRETRAIN = CfgNode()
    # The folder with train/CLASS/*.jpg and val/CLASS/*.jpg; "": $DETECTRON2_DATASETS/imagenet.
    cfg.PRETRAIN.ROOT = ""
    cfg.PRETRAIN.NUM_CLASSES = 1000
    # Before the classifier.
    cfg.PRETRAIN.DROPOUT = 0.0
    # Mixup's alpha: training mixes each image, and its label, with another one of the batch, by a
    # share from Beta(alpha, alpha) that is drawn anew for every batch of a process. 0: none.
    cfg.PRETRAIN.MIXUP = 0.0
    # Pixels: the random crop of training; the shorter side, then the central crop, of validation.
    cfg.PRETRAIN.TRAIN_CROP = 224
    cfg.PRETRAIN.VAL_RESIZE = 256
    cfg.PRETRAIN.VAL_CROP = 224
    # The schedule in epochs, from which SOLVER's MAX_ITER, STEPS, WARMUP_ITERS and
    # CHECKPOINT_PERIOD, and TEST.EVAL_PERIOD, are made where they are -1.
    cfg.PRETRAIN.EPOCHS = 100
    cfg.PRETRAIN.DROP_EPOCHS = (30, 60, 90)
    cfg.PRETRAIN.WARMUP_EPOCHS = 5
    cfg.PRETRAIN.EVAL_EPOCHS = 1


def get_cfg() -> CfgNode:
    """A copy of Detectron2's default config with this package's keys."""
    cfg = get_detectron2_cfg()
    add_isonet_config(cfg)
    return cfg


def available_device(device: str, key: str) -> str:
    """The device of a config, or the CPU where it names a GPU and there is none, with a warning."""
    try:
        kind, number = torch.device(device).type, torch.device(device).index or 0
    except RuntimeError:
        kind, number = "", 0
    if kind == "cpu":
        return "cpu"
    if kind != "cuda" or number >= max(torch.cuda.device_count(), 1):
        last = max(torch.cuda.device_count() - 1, 0)
        raise ISONetError(f"{key}: expected cuda, cuda:0 to cuda:{last} or cpu, got {device!r}")
    if torch.cuda.is_available():
        return device
    log_first_n(logging.WARNING, f"No CUDA GPU here: {key} is the CPU.", key="message")
    return "cpu"


# Least and greatest value of numbers that fail late, or hang, beyond them.
_RANGES: dict[str, tuple[float, float]] = {
    "SEED": (-1, 2**32 - 1),
    "DATALOADER.NUM_WORKERS": (0, 1024),
    "DATALOADER.UNREADABLE_LIMIT": (0, 2**31),
    "SOLVER.MAX_ITER": (1, 2**31),
    "SOLVER.CHECKPOINT_PERIOD": (0, 2**31),
    "TEST.EVAL_PERIOD": (0, 2**31),
    "SOLVER.IMS_PER_BATCH": (1, 2**20),
    "SOLVER.ACCUMULATE_STEPS": (1, 2**20),
    "SOLVER.CHECKPOINT_KEEP": (0, 2**31),
    "SOLVER.NONFINITE_LIMIT": (0, 2**31),
    "SOLVER.EARLY_STOPPING.PATIENCE": (1, 2**31),
    "MODEL.EMA.DECAY": (0, 1),
    "PRETRAIN.MIXUP": (0, 1e6),
    "TEST.DETECTIONS_PER_IMAGE": (1, 2**20),
    "PRETRAIN.TRAIN_CROP": (1, 2**16),
    "PRETRAIN.VAL_RESIZE": (1, 2**16),
    "PRETRAIN.VAL_CROP": (1, 2**16),
}
_FROM_EPOCHS = ("SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD")
_REGISTRIES = {
    "MODEL.META_ARCHITECTURE": modeling.META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": modeling.BACKBONE_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": modeling.PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.ROI_HEADS.NAME": modeling.ROI_HEADS_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": modeling.ANCHOR_GENERATOR_REGISTRY,
}


def check_values(cfg: CfgNode) -> None:
    """Check numbers and names that Detectron2 takes as they are and fails on later."""
    classifies = cfg.MODEL.META_ARCHITECTURE == "ImageClassifier"
    by_epochs = classifies or tuple(cfg.SOLVER.STEPS) == (-1,)
    for key, (least, most) in _RANGES.items():
        value = attrgetter(key)(cfg)
        if value == -1 and key in _FROM_EPOCHS and by_epochs:
            continue
        if not least <= value <= most:
            limits = f"{least:g} or more" if value < least else f"{most:g} or less"
            raise ISONetError(f"{key} is {limits}, not {value}")
    for key, registry in _REGISTRIES.items():
        name = attrgetter(key)(cfg)
        if name and name not in registry and name != "PrecomputedProposals":
            near = difflib.get_close_matches(name, [n for n, _ in registry], 1, 0.0)
            raise ISONetError(f"{key}: there is no {name}; did you mean {near[0]}?")


HEADS = ("ROI_HEADS", "RETINANET")  # whose NUM_CLASSES are those of the annotated objects


def has_unknown_classes(cfg: CfgNode) -> bool:
    """Whether a number of classes is -1: that of the data, or of the weights of an evaluation."""
    return any(cfg.MODEL[section].NUM_CLASSES == -1 for section in HEADS)


def set_number_of_classes(cfg: CfgNode, count: int, known: bool = True) -> CfgNode:
    """A config for that many classes, not frozen; with ``known`` False where it is -1 alone."""
    if not count:
        raise ISONetError("the weights name no classes: add MODEL.ROI_HEADS.NUM_CLASSES and theirs")
    cfg = cfg.clone()
    cfg.defrost()
    for section in HEADS:
        if known or cfg.MODEL[section].NUM_CLASSES == -1:
            cfg.MODEL[section].NUM_CLASSES = count
    return cfg


def configs_dir() -> Path:
    """The folder of the ready configs: inside the installed package, or beside it in a clone."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_config_file(name: str) -> str:
    """Path of a config file, or of the ready config of that name."""
    name = os.path.expanduser(name)
    if os.path.isfile(name):
        return name
    ready = configs_dir() / name.removeprefix("configs/")
    if ready.is_file():
        return str(ready)
    others = [str(p.relative_to(configs_dir())) for p in sorted(configs_dir().rglob("*.yaml"))]
    near = difflib.get_close_matches(name.removeprefix("configs/"), others, 1, 0.4)
    hint = f"; did you mean the ready config {near[0]}?" if near else ""
    raise ISONetError(f"config file {name} not found (looked in {os.getcwd()} too){hint}")


def different_keys(a: CfgNode, b: CfgNode) -> set[str]:
    """The keys, dotted, that have not the same value in two configs or are in one only."""
    # Through yaml, as a run's config.yaml went: tuples and lists are alike.
    flat_a, flat_b = (dict(flatten(yaml.safe_load(cfg.dump()))) for cfg in (a, b))
    return {key for key in {*flat_a, *flat_b} if flat_a.get(key) != flat_b.get(key)}


def flatten(node: dict, prefix: str = "") -> list[tuple[str, object]]:
    """The values of a config, as nested dicts, with their dotted keys."""
    flat: list[tuple[str, object]] = []
    for key, value in node.items():
        if isinstance(value, dict):
            flat += flatten(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat


# Detectron2's projects that come with it, and what adds the keys of each.
_PROJECTS = {
    "point_rend": "add_pointrend_config",
    "deeplab": "add_deeplab_config",
    "panoptic_deeplab": "add_panoptic_deeplab_config",
}


def _has(cfg: CfgNode, key: str) -> bool:
    node = cfg
    for part in key.split("."):
        if not isinstance(node, CfgNode) or part not in node:
            return False
        node = node[part]
    return True


def _add_project_keys(cfg: CfgNode, keys: list[str]) -> None:
    """Add the keys of the first project of Detectron2's that knows all that are new, in place."""
    new_keys = [key for key in keys if not _has(cfg, key)]
    for project, function in _PROJECTS.items() if new_keys else ():
        trial = cfg.clone()
        try:
            add_keys = getattr(importlib.import_module(f"detectron2.projects.{project}"), function)
        except ModuleNotFoundError as error:
            if not any(project.upper() in key for key in new_keys):
                continue  # a typing error, more likely
            needed = f"{error.name}: pip install --no-deps panopticapi-lite"
            raise ISONetError(f"Detectron2's {project} needs the package {needed}") from error
        add_keys(trial)
        if all(_has(trial, key) for key in new_keys):
            add_keys(cfg)
            return


def _merge(cfg: CfgNode, values: list[tuple[str, object]], where: str) -> None:
    for key, value in values:
        if not _has(cfg, key):
            near = difflib.get_close_matches(key, [known for known, _ in flatten(cfg)], 1, 0.0)
            raise ISONetError(f"{where}: there is no config key {key}; did you mean {near[0]}?")
        default = attrgetter(key)(cfg)
        if isinstance(default, CfgNode):
            raise ISONetError(f"{where}: {key} is a section of the config, not a key with a value")
        if isinstance(value, str) and not isinstance(default, str):
            # As yacs reads a command line: a Python literal, or else the words themselves.
            with contextlib.suppress(ValueError, SyntaxError):
                value = ast.literal_eval(value)
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        try:
            cfg.merge_from_list([key, value])
        except (ValueError, AssertionError, KeyError, SyntaxError) as error:
            expected = f"expected {type(default).__name__}, got {value!r}"
            raise ISONetError(f"{where}: {key}: {expected}") from error


class _StrictNode(CfgNode):
    """Reads yaml files in which no key stands twice: the first would be lost in silence."""

    @classmethod
    def _open_cfg(cls, filename: str) -> Any:
        with open(filename, encoding="utf-8-sig") as f:
            text = f.read()
        nodes = [yaml.compose(text, Loader=yaml.SafeLoader)]
        while nodes:
            node = nodes.pop()
            if isinstance(node, yaml.MappingNode):
                keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
                for key in keys:
                    if keys.count(key) > 1:
                        raise ISONetError(f"config file {filename}: {key} stands in it twice")
                nodes += [value for _, value in node.value]
        return io.StringIO(text)


def merge_config_file(cfg: CfgNode, path: str) -> None:
    """Merge a yaml config, its ``_BASE_`` files and its project's keys; no tag runs code."""
    try:
        values = _StrictNode.load_yaml_with_base(path, allow_unsafe=False)
    except (FileNotFoundError, IsADirectoryError) as error:
        named = path if error.filename == path else f"{path}: {error.filename}"
        raise ISONetError(f"config file {named} not found") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ISONetError(f"config file {path} is no plain yaml: {reason}") from error
    except RecursionError as error:
        raise ISONetError(f"config file {path}: its _BASE_ files lead back to it") from error
    except (UnicodeDecodeError, AttributeError, TypeError, AssertionError) as error:
        raise ISONetError(f"config file {path} is no yaml mapping of config keys") from error
    if not isinstance(values, dict):
        raise ISONetError(f"config file {path} is no yaml mapping of config keys")
    if values.get("VERSION", 2) != 2:
        raise ISONetError(f"config file {path}: VERSION {values['VERSION']}, expected 2")
    flat = [(key, value) for key, value in flatten(values) if key != "VERSION"]
    _add_project_keys(cfg, [key for key, _ in flat])
    _merge(cfg, flat, f"config file {path}")


def merge_options(cfg: CfgNode, options: list[str]) -> None:
    """Merge ``KEY VALUE`` pairs of a command line into ``cfg``, in place."""
    flags = [word for word in options if word.startswith("--")]
    if flags:
        raise ISONetError(f"the flag {flags[0]} has to come before the first KEY VALUE pair")
    if len(options) % 2:
        raise ISONetError(f"options are KEY VALUE pairs; {options[-1]!r} has no partner")
    _merge(cfg, list(zip(options[::2], options[1::2], strict=True)), "command line")
