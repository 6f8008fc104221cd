"""What is checked before a start, and the folder of a run."""

import argparse
import logging
import os
import shutil
import tempfile

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from ..data.classes import check_test_classes, class_records
from ..errors import ISONetError
from ..solver.schedule import scaled_to_workers
from ..weights.loader import load_weights
from ..weights.reader import read_file
from .arguments import make_cfg
from .checkpointer import WholeCheckpointer
from .processes import check_processes
from .resume import check_resumable
from .run_info import write_run_info
from .tracking import check_tracking
from .trainer import Trainer, step_options


def check_output_dir(path: str, needed_bytes: int) -> None:
    """Check that ``path`` can be written and has room.

    Raises:
        ISONetError: it cannot, or has not.
    """
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as f:
            f.write(b"0")
    except OSError as error:
        raise ISONetError(
            f"OUTPUT_DIR {path} cannot be written: {error.strerror}; name another folder"
        ) from error
    free = shutil.disk_usage(path).free
    if free < needed_bytes:
        raise ISONetError(
            f"OUTPUT_DIR {path}: {free / 1e9:.2f} GB are free and one checkpoint takes "
            f"{needed_bytes / 1e9:.2f} GB; free some space or name another folder"
        )


def prepare(trainer: type[Trainer], args: argparse.Namespace) -> CfgNode:
    """Find out what is wrong before any process, model or file is made: config, devices, data,
    weights, model, output folder.

    Args:
        trainer: whose run it is.
        args: of the command line.

    Raises:
        ISONetError: the first thing that is wrong.
    """
    cfg = make_cfg(args)
    check_processes(args)
    training = not args.eval_only
    trainer.check_data(cfg, training)
    if training:
        cfg = trainer.complete_cfg(cfg, args.opts)
        cfg = scaled_to_workers(cfg, args.num_gpus * args.num_machines)
        check_tracking(cfg)
        step_options(cfg, seed=0)
    model = _build_on_cpu(cfg, trainer if training else None)
    # Hashes a checkpoint: only where it decides something.
    resuming = training and args.resume and WholeCheckpointer(model, cfg.OUTPUT_DIR).newest_whole()
    if resuming:
        optimizer = trainer.build_optimizer(cfg, model)
        content, classes = read_file(resuming), class_records(cfg.DATASETS.TRAIN[0])
        check_resumable(content, resuming, model, optimizer, classes)
    else:
        # Once in this process, so that a file that does not fit ends the run before it starts.
        load_weights(model, cfg.MODEL.WEIGHTS, whole=args.eval_only)
        check_test_classes(cfg, model)
    parameters = sum(p.numel() for p in model.parameters())
    # Weights and momentum in float32.
    check_output_dir(cfg.OUTPUT_DIR, 8 * parameters if training else 0)
    return cfg


def _build_on_cpu(cfg: CfgNode, trainer: type[Trainer] | None) -> nn.Module:
    """The model, built; for a trainer its optimizer and schedule too, to see that they can be."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    try:
        model = build_model(cfg)
        if cfg.TEST.AUG.ENABLED:
            GeneralizedRCNNWithTTA(cfg, model)  # which says what it cannot augment
        if trainer is not None:
            trainer.build_lr_scheduler(cfg, trainer.build_optimizer(cfg, model))
        return model
    except ISONetError:
        raise
    except (
        LookupError,
        ValueError,
        TypeError,
        AssertionError,
        RuntimeError,
        ArithmeticError,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        what = "model, optimizer or schedule" if trainer else "model"
        raise ISONetError(f"the config's {what} cannot be built: {reason}") from error


def setup(trainer: type[Trainer], args: argparse.Namespace) -> CfgNode:
    """The config of a command line as it runs (scaled to the processes that are there), with
    Detectron2's loggers, seed and ``config.yaml``. An evaluation in the folder of a training run
    writes to ``evaluation`` in it.

    Args:
        trainer: whose run it is.
        args: of the command line.
    """
    cfg = make_cfg(args)
    if not args.eval_only:
        cfg = trainer.complete_cfg(cfg, args.opts)
        cfg = scaled_to_workers(cfg, comm.get_world_size())
    if args.eval_only and os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")):
        # The folder of a training run, whose config, results and pictures stay its own.
        cfg = cfg.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "evaluation")
        cfg.freeze()
        check_output_dir(cfg.OUTPUT_DIR, 0)
    logging.getLogger("isonet_det").handlers.clear()  # those of the checks
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="isonet_det")
    default_setup(cfg, args)
    if comm.is_main_process():
        write_run_info(cfg.OUTPUT_DIR, comm.get_world_size())
    return cfg
