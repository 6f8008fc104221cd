"""From a command line to a config."""

import argparse
from collections.abc import Sequence

from detectron2.config import CfgNode

from ..cli import add_dataset_argument
from ..config import (
    available_device,
    find_config_file,
    get_cfg,
    merge_config_file,
    merge_options,
)
from ..data import register_from_argument
from ..solver.schedule import keep_explicit_schedule


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's training arguments and ``--dataset``."""
    from detectron2.engine import default_argument_parser  # the training stack

    parser = default_argument_parser()
    add_dataset_argument(parser)
    return parser


def build_cfg(config_file: str, options: Sequence[str], datasets: Sequence[str] = ()) -> CfgNode:
    """The full config of a config file and ``KEY VALUE`` words, on a device that is there.

    Args:
        config_file: a path or a ready config's name; "" for the defaults.
        options: pairs.
        datasets: ``--dataset`` arguments, which are registered.

    Raises:
        ISONetError: a file, key or value that is wrong.
    """
    for argument in datasets:
        register_from_argument(argument)
    cfg = get_cfg()
    if config_file:
        merge_config_file(cfg, find_config_file(config_file))
    merge_options(cfg, list(options))
    keep_explicit_schedule(cfg, options)
    cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE, "MODEL.DEVICE")
    cfg.freeze()
    return cfg


def make_cfg(args: argparse.Namespace) -> CfgNode:
    """:func:`build_cfg` of parsed arguments; ``args.config_file`` becomes the file that was found.

    Raises:
        ISONetError: a file, key or value that is wrong.
    """
    if args.config_file:
        args.config_file = find_config_file(args.config_file)
    return build_cfg(args.config_file, args.opts, args.dataset)
