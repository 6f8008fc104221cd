"""From a command line to a config."""

import argparse
import contextlib
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
from ..data.mapper import mask_format
from ..errors import ISONetError
from ..solver.schedule import keep_explicit_schedule


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's training arguments and ``--dataset``."""
    from detectron2.engine import default_argument_parser  # the training stack

    parser = default_argument_parser()
    add_dataset_argument(parser)
    return parser


def build_cfg(
    config_file: str, options: Sequence[str], datasets: Sequence[str] = (), training: bool = True
) -> CfgNode:
    """The full config of a config file and ``KEY VALUE`` words, on a device that is there.

    Args:
        config_file: a path or a ready config's name; "" for the defaults.
        options: pairs.
        datasets: ``--dataset`` arguments, which are registered.
        training: the masks' format follows these training sets.

    Raises:
        ISONetError: a file, key or value that is wrong.
    """
    registered = {register_from_argument(argument) for argument in datasets}
    cfg = get_cfg()
    if config_file:
        merge_config_file(cfg, find_config_file(config_file))
    merge_options(cfg, list(options))
    keep_explicit_schedule(cfg, options)
    cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE, "MODEL.DEVICE")
    if training and registered & set(cfg.DATASETS.TRAIN):
        with contextlib.suppress(ISONetError):  # the checks will tell
            cfg.INPUT.MASK_FORMAT = mask_format(cfg)
    cfg.freeze()
    return cfg


def make_cfg(args: argparse.Namespace) -> CfgNode:
    """:func:`build_cfg` of parsed arguments; ``args.config_file`` becomes the file that was found.

    Raises:
        ISONetError: a file, key or value that is wrong.
    """
    if args.config_file:
        args.config_file = find_config_file(args.config_file)
    training = not getattr(args, "eval_only", False)
    return build_cfg(args.config_file, args.opts, args.dataset, training)
