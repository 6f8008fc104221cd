"""From a command line to a config."""

import argparse
import os
from collections.abc import Sequence

from detectron2.config import CfgNode

from ..cli import Help, add_dataset_argument
from ..config import (
    HEADS,
    available_device,
    check_values,
    find_config_file,
    get_cfg,
    merge_config_file,
    merge_options,
)
from ..data import check_datasets, register_from_argument
from ..errors import ISONetError
from ..solver.schedule import scale_to_processes

EXAMPLES = """examples:
  isonet-det train --config-file small_data.yaml --train train.json:photos --val val.json:photos
  isonet-det evaluate --config-file run/config.yaml MODEL.WEIGHTS run/model_final.pth
  isonet-det pretrain --config-file imagenet/risonet34.yaml --num-gpus 8"""


def argument_parser(datasets: bool = True) -> argparse.ArgumentParser:
    """Detectron2's training arguments and, if ``datasets``, ``--dataset``."""
    from detectron2.engine import default_argument_parser  # the training stack

    parser = default_argument_parser(EXAMPLES)
    parser.formatter_class = Help
    # A free port: of two runs of a person on one machine each has its own.
    parser.set_defaults(dist_url="auto")
    parser.set_defaults(dataset=[])
    if datasets:
        add_dataset_argument(parser)
    return parser


def build_cfg(
    config_file: str, options: Sequence[str], datasets: Sequence[str] = (), processes: int = 1
) -> CfgNode:
    """The config of a file and ``KEY VALUE`` words, frozen, scaled to the processes."""
    if not config_file:
        raise ISONetError("name a config: --config-file, such as small_data.yaml")
    names = [register_from_argument(argument) for argument in datasets]
    cfg = get_cfg()
    merge_config_file(cfg, find_config_file(config_file))
    merge_options(cfg, [*_own_data(names), *options])
    if names and not {*names} & {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST}:
        raise ISONetError(
            f"--dataset {', '.join(names)}: neither DATASETS.TRAIN {cfg.DATASETS.TRAIN} nor "
            f"DATASETS.TEST {cfg.DATASETS.TEST} names it; add DATASETS.TRAIN \"('{names[0]}',)\""
        )
    cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE, "MODEL.DEVICE")
    cfg.OUTPUT_DIR = os.path.expanduser(cfg.OUTPUT_DIR)
    check_values(cfg)
    return scale_to_processes(cfg, processes, options)


def _own_data(names: Sequence[str]) -> list[str]:
    """The options of ``--train`` and ``--val``; -1 classes are those of data or weights."""
    options: list[str] = []
    for key, name in (("TRAIN", "own_train"), ("TEST", "own_val")):
        if name in names or "own_train" in names:  # which is not evaluated on the config's own set
            options += [f"DATASETS.{key}", str((name,) if name in names else ())]
    heads = [word for section in HEADS for word in (f"MODEL.{section}.NUM_CLASSES", "-1")]
    # The AP that a ready config expects is that of its own data.
    return options and [*options, *heads, "TEST.EXPECTED_RESULTS", "[]"]


def make_cfg(args: argparse.Namespace, objects: bool = False) -> CfgNode:
    """The config of a tool's arguments as a training in one process would have it."""
    return check_datasets(build_cfg(args.config_file, args.opts, args.dataset), objects=objects)
