"""The command line of the training tools: config set-up, checks, processes."""

import argparse
import contextlib
import errno
import functools
import logging
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing
from detectron2.config import CfgNode
from detectron2.engine import default_setup, launch
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from ..config import find_config_file, get_cfg, merge_config_file, merge_options
from ..data import register_from_argument
from ..data.classes import check_test_classes, class_records
from ..data.mapper import mask_format
from ..data.sets import shared, shared_between_ranks
from ..errors import IsonetError
from ..solver.schedule import keep_explicit_schedule, scaled_to_workers
from ..weights.loader import load_weights
from .checkpointer import WholeCheckpointer
from .hooks import EXIT_STATUS
from .resume import check_resumable
from .run_info import write_run_info
from .trainer import Trainer


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's training arguments and ``--dataset``."""
    from detectron2.engine import default_argument_parser

    parser = default_argument_parser()
    parser.set_defaults(trainer=Trainer)
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="NAME=annotations.json:image_root",
        help="register a COCO-format data set of your own; repeatable",
    )
    return parser


@functools.cache  # once
def _warn_of_the_cpu() -> None:
    logging.getLogger(__name__).warning("No CUDA GPU here: MODEL.DEVICE is the CPU.")


def make_cfg(args: argparse.Namespace) -> CfgNode:
    """The full config of a command line, without side effects on disk.

    Raises:
        IsonetError: anything in it that cannot be.
    """
    own = {register_from_argument(argument) for argument in args.dataset}
    cfg = get_cfg()
    if args.config_file:
        args.config_file = find_config_file(args.config_file)
        merge_config_file(cfg, args.config_file)
    merge_options(cfg, list(args.opts))
    keep_explicit_schedule(cfg, args.opts)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        _warn_of_the_cpu()
        cfg.MODEL.DEVICE = "cpu"
    if own & set(cfg.DATASETS.TRAIN) and not getattr(args, "eval_only", False):
        with contextlib.suppress(IsonetError):  # the checks will tell
            cfg.INPUT.MASK_FORMAT = mask_format(cfg)
    cfg.freeze()
    return cfg


def at_least_one(text: str) -> int:
    """The ``type`` of an argument that counts something.

    Raises:
        argparse.ArgumentTypeError: it is no whole number from 1 up.
    """
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return value


def check_processes(device: str, args: argparse.Namespace) -> None:
    """Check that this machine can run the processes that Detectron2's arguments ask for.

    Args:
        device: of the model; without a CUDA GPU it is the CPU.
        args: with ``num_gpus``, ``num_machines`` and ``machine_rank``.

    Raises:
        IsonetError: it cannot.
    """
    on_gpu = device.startswith("cuda") and torch.cuda.is_available()
    found = torch.cuda.device_count() if on_gpu else (os.cpu_count() or 1)
    what = "CUDA GPUs" if on_gpu else "CPU cores (and no CUDA GPU)"
    if not 1 <= args.num_gpus <= found:
        raise IsonetError(f"--num-gpus {args.num_gpus}: this machine has {found} {what}")
    if not 0 <= args.machine_rank < args.num_machines:
        raise IsonetError(
            f"--machine-rank {args.machine_rank} of --num-machines {args.num_machines}: ranks "
            "count from 0, below the number of machines"
        )


def check_output_dir(path: str, needed_bytes: int) -> None:
    """Check that ``path`` can be written and has room.

    Raises:
        IsonetError: it cannot, or has not.
    """
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as f:
            f.write(b"0")
    except OSError as error:
        raise IsonetError(
            f"OUTPUT_DIR {path} cannot be written: {error.strerror}; name another folder"
        ) from error
    free = shutil.disk_usage(path).free
    if free < needed_bytes:
        raise IsonetError(
            f"OUTPUT_DIR {path}: {free / 1e9:.2f} GB are free and one checkpoint takes "
            f"{needed_bytes / 1e9:.2f} GB; free some space or name another folder"
        )


def prepare(args: argparse.Namespace) -> CfgNode:
    """Find out what is wrong before any process, model or file is made: config, devices, data,
    weights, model, output folder.

    Raises:
        IsonetError: the first thing that is wrong.
    """
    cfg = make_cfg(args)
    check_processes(cfg.MODEL.DEVICE, args)
    trainer: type[Trainer] = args.trainer
    training = not args.eval_only
    trainer.check_data(cfg, training)
    if training:
        cfg = trainer.complete_cfg(cfg, args.opts)
        scaled_to_workers(cfg, args.num_gpus * args.num_machines)
        if cfg.SOLVER.ON_NONFINITE not in ("stop", "skip"):
            raise IsonetError(
                f'SOLVER.ON_NONFINITE is "stop" or "skip", not {cfg.SOLVER.ON_NONFINITE!r}'
            )
    model = _build_on_cpu(cfg, trainer if training else None)
    # Hashes a checkpoint: only where it decides something.
    resuming = training and args.resume and WholeCheckpointer(model, cfg.OUTPUT_DIR).newest_whole()
    if resuming:
        optimizer = trainer.build_optimizer(cfg, model)
        check_resumable(resuming, model, optimizer, class_records(cfg.DATASETS.TRAIN[0]))
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
        if trainer is not None:
            trainer.build_lr_scheduler(cfg, trainer.build_optimizer(cfg, model))
        return model
    except IsonetError:
        raise
    except (
        KeyError,
        ValueError,
        TypeError,
        AssertionError,
        RuntimeError,
        ArithmeticError,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        what = "model, optimizer or schedule" if trainer else "model"
        raise IsonetError(f"the config's {what} cannot be built: {reason}") from error


def setup(args: argparse.Namespace) -> CfgNode:
    """The config of a command line as it runs (scaled to the processes that are there), with
    Detectron2's loggers, seed and ``config.yaml``. An evaluation in the folder of a training run
    writes to ``evaluation`` in it."""
    cfg = make_cfg(args)
    if not args.eval_only:
        cfg = args.trainer.complete_cfg(cfg, args.opts)
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


def run(args: argparse.Namespace) -> Any:
    """Train, or evaluate with ``--eval-only``; in every process."""
    cfg = setup(args)
    if args.eval_only:
        return args.trainer.evaluate(cfg)
    trainer = args.trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def exit_with_one_line(main: Callable[..., Any], *args: Any) -> Any:
    """Call ``main``; an :class:`IsonetError` becomes one line on stderr and exit status 2."""
    try:
        return main(*args)
    except IsonetError as error:
        # From a data-loader worker the message carries a traceback; the last line is ours.
        line = str(error).strip().splitlines()[-1]
        line = re.sub(r"^isonet_det\.[\w.]*Error: ", "", line)
        print(f"error: {line}", file=sys.stderr)
    except torch.multiprocessing.ProcessExitedException as error:
        if error.exit_code == -signal.SIGTERM:  # while it still imported
            sys.exit(EXIT_STATUS[signal.SIGTERM])
        if error.exit_code not in (2, *EXIT_STATUS.values()):
            raise
        sys.exit(error.exit_code)  # the process has said why
    except OSError as error:
        if error.errno is None or (error.filename is None and error.errno != errno.ENOSPC):
            raise
        print(f"error: {error.filename or 'OUTPUT_DIR'}: {error.strerror}", file=sys.stderr)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        line = str(error).strip().splitlines()[0]
        print(
            f"error: {line}: a data-loading process died (out of memory?); lower "
            "DATALOADER.NUM_WORKERS and run again with --resume",
            file=sys.stderr,
        )
    sys.exit(2)


def launch_processes(work: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Run ``work(args)`` in every process that Detectron2's arguments ask for; each ends a mistake
    with one line."""
    if args.num_gpus * args.num_machines > 1:
        _forward_signals()
    with shared(args.num_gpus):
        launch(
            _work_in_process,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(work, args),
        )


def _work_in_process(work: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    if args.num_gpus * args.num_machines > 1:
        _leave_on_signals()
    exit_with_one_line(work, args)


def _leave_on_signals() -> None:
    """One of several processes ends with the exit status that a scheduler knows, also before its
    training has begun and after it was told to stop; the same signal may come again."""

    def leave(number: int, frame) -> None:
        signal.signal(number, signal.SIG_IGN)
        sys.exit(EXIT_STATUS[signal.Signals(number)])

    for number in EXIT_STATUS:
        signal.signal(number, leave)


def _forward_signals() -> None:
    """The parent of several processes hands a SIGTERM on and waits for their checkpoint."""

    def forward(number: int, frame) -> None:
        for child in multiprocessing.active_children():
            child.terminate()

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process by itself


def _run_under_torchrun(args: argparse.Namespace) -> None:
    """One of the processes that torchrun has started; the first one makes the checks."""
    _leave_on_signals()
    world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    args.num_gpus, args.num_machines = local, world // local
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
    comm.create_local_process_group(local)
    problem = None
    if comm.is_main_process():
        try:
            prepare(args)
        except IsonetError as error:
            problem = str(error)
    problem = comm.all_gather(problem)[0]
    if problem is None:
        cfg = make_cfg(args)
        names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
        with shared_between_ranks(names, int(os.environ["LOCAL_RANK"])):
            run(args)
    elif comm.is_main_process():
        raise IsonetError(problem)
    else:
        sys.exit(2)
    torch.distributed.destroy_process_group()


def main(argv: list[str] | None = None, parser: argparse.ArgumentParser | None = None) -> None:
    """The command line of the training tools; under torchrun too.

    Args:
        argv: its words; None for those of the process.
        parser: None for :func:`argument_parser`; another one sets "trainer"
            and "dataset".
    """
    args = (parser or argument_parser()).parse_args(argv)
    setup_logger(name="isonet_det", distributed_rank=int(os.environ.get("RANK", 0)))

    def checked() -> None:
        if {"RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"} <= set(os.environ):
            _run_under_torchrun(args)
            return
        prepare(args)
        launch_processes(run, args)

    exit_with_one_line(checked)
