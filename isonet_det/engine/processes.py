"""The processes of a run: how many there can be, how they start, and what they do at a signal."""

import argparse
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing
from detectron2.engine import launch
from detectron2.utils import comm

from ..cli import EXIT_STATUS, MISTAKE, exit_with_one_line, quiet_libraries
from ..data.sets import shared
from ..errors import ISONetError
from .step import flush_subnormals

Work = Callable[[argparse.Namespace], Any]


def check_processes(args: argparse.Namespace) -> None:
    """Check that this machine can run the processes that Detectron2's arguments ask for.

    Args:
        args: with ``num_gpus``, ``num_machines`` and ``machine_rank``.

    Raises:
        ISONetError: it cannot.
    """
    # Detectron2 starts at most one a GPU where there are any, whatever device the model is on.
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    limit, what = gpus, "CUDA GPUs"
    if not gpus:
        limit, what = os.cpu_count() or 1, "CPU cores (and no CUDA GPU)"
    if not 1 <= args.num_gpus <= limit:
        raise ISONetError(f"--num-gpus {args.num_gpus}: this machine has {limit} {what}")
    if not 0 <= args.machine_rank < args.num_machines:
        raise ISONetError(
            f"--machine-rank {args.machine_rank} of --num-machines {args.num_machines}: ranks "
            "count from 0, below the number of machines"
        )


def launch_processes(work: Work, args: argparse.Namespace) -> None:
    """Run ``work(args)`` in every process that Detectron2's arguments ask for; each ends a mistake
    with one line.

    Raises:
        SystemExit: one of several processes has said why and ended.
    """
    if args.num_gpus * args.num_machines > 1:
        _forward_signals()
    try:
        with shared(args.num_gpus):
            launch(
                _work_in_process,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(work, args),
            )
    except torch.multiprocessing.ProcessExitedException as error:
        if error.exit_code == -signal.SIGTERM:  # while it still imported
            sys.exit(EXIT_STATUS[signal.SIGTERM])
        if error.exit_code not in (MISTAKE, *EXIT_STATUS.values()):
            raise
        sys.exit(error.exit_code)


def _work_in_process(work: Work, args: argparse.Namespace) -> None:
    if args.num_gpus * args.num_machines > 1:
        quiet_libraries()
        _leave_on_signals()
    flush_subnormals()
    exit_with_one_line(work, args)


def _leave_on_signals() -> None:
    """One of several processes ends with the exit status that a scheduler knows, also before its
    training has begun and after it was told to stop; the same signal may come again."""

    def leave(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)
        sys.exit(EXIT_STATUS[number])

    for number in EXIT_STATUS:
        signal.signal(number, leave)


def _forward_signals() -> None:
    """The parent of several processes hands a SIGTERM on and waits for their checkpoint."""

    def forward(number: int, frame: Any) -> None:
        for child in multiprocessing.active_children():
            child.terminate()

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process by itself


def under_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return {"RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"} <= set(os.environ)


def run_under_torchrun(check: Work, work: Work, args: argparse.Namespace) -> None:
    """One of the processes that torchrun has started; the first one makes the checks.

    Args:
        check: raises what is wrong.
        work: in every process.
        args: for both; the numbers of processes are torchrun's.

    Raises:
        ISONetError: in the first process, what is wrong.
        SystemExit: in the others then.
    """
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
            check(args)
        except ISONetError as error:
            problem = str(error)
    problem = comm.all_gather(problem)[0]
    if problem is None:
        work(args)
    elif comm.is_main_process():
        raise ISONetError(problem)
    else:
        sys.exit(MISTAKE)
    torch.distributed.destroy_process_group()
