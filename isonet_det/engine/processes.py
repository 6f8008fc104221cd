"""The processes of a run: how many there can be, how they start, and what they do at a signal."""

import argparse
import atexit
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.multiprocessing
from detectron2.engine import launch
from detectron2.utils import comm

from ..cli import EXIT_STATUS, MISTAKE, exit_with_one_line, heeded_signals, quiet_libraries
from ..errors import ISONetError
from .logs import log_to_screen
from .step import flush_subnormals

Result = TypeVar("Result")


def together(work: Callable[..., Result], *args: Any) -> Result:
    """``work(*args)`` in every process; a mistake in one ends all, and the first says it."""
    if comm.get_world_size() == 1:
        return work(*args)
    problem = ""
    try:
        result = work(*args)
    except ISONetError as error:
        problem = str(error)
    problem = next(filter(None, comm.all_gather(problem)), "")
    if not problem:
        return result
    if comm.is_main_process():
        raise ISONetError(problem)
    sys.exit(MISTAKE)


def number_of_processes(args: argparse.Namespace) -> int:
    """How many a command line asks for, or torchrun has started."""
    return int(os.environ["WORLD_SIZE"]) if under_torchrun() else args.num_gpus * args.num_machines


def check_processes(args: argparse.Namespace) -> None:
    # Detectron2 starts at most one a GPU where there are any, whatever device the model is on.
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    limit, what = gpus, "CUDA GPUs"
    if not gpus:
        limit, what = os.cpu_count() or 1, "CPU cores (and no CUDA GPU)"
    if not 1 <= args.num_gpus <= limit:
        raise ISONetError(f"--num-gpus {args.num_gpus}: this machine has {limit} {what}")
    if not 0 <= args.machine_rank < args.num_machines:
        which = f"--machine-rank {args.machine_rank} of --num-machines {args.num_machines}"
        raise ISONetError(f"{which}: ranks count from 0, below the number of machines")
    if args.num_machines > 1 and args.dist_url == "auto":
        raise ISONetError(f"--num-machines {args.num_machines} needs --dist-url tcp://HOST:PORT")
    port = args.dist_url.rpartition(":")[2]
    if args.num_gpus * args.num_machines > 1 and args.machine_rank == 0 and port.isdigit():
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                free.bind(("", int(port)))
            except OSError as error:
                raise ISONetError(
                    f"--dist-url {args.dist_url}: port {port} is in use; name another, or none"
                ) from error


def run_in_processes(
    work: Callable[[Any], Any], args: argparse.Namespace, prepare: Callable[[], Any]
) -> None:
    """Run ``work(prepare())`` in every process that is asked for or that torchrun started."""
    if under_torchrun():
        _join_torchrun()
        _work_and_end(lambda _: work(together(prepare)), None)
        return
    check_processes(args)
    prepared = prepare()
    if args.num_gpus * args.num_machines > 1:
        _forward_signals()
    try:
        launch(
            _work_in_process,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(work, args, prepared),
        )
    except torch.multiprocessing.ProcessExitedException as error:
        if error.exit_code == -signal.SIGTERM:  # while it still imported
            sys.exit(EXIT_STATUS[signal.SIGTERM])
        if error.exit_code not in (MISTAKE, *EXIT_STATUS.values()):
            raise
        sys.exit(error.exit_code)


def _work_in_process(work: Callable[[Any], Any], args: argparse.Namespace, prepared: Any) -> None:
    if args.num_gpus * args.num_machines > 1:
        quiet_libraries()
        log_to_screen(comm.get_rank())
        _leave_on_signals()
    flush_subnormals()
    if comm.get_world_size() > 1:
        _work_and_end(work, prepared)
    else:
        exit_with_one_line(work, prepared)


def _work_and_end(work: Callable[[Any], Any], prepared: Any) -> None:
    """Work as one of several processes and end here, at once: an interpreter that winds down beside
    gloo's threads aborts now and then, and the exit status is lost."""
    status: Any = 0
    try:
        exit_with_one_line(work, prepared)
    except SystemExit as end:
        status = end.code or 0
    atexit._run_exitfuncs()  # loggers, loader workers
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _leave_on_signals() -> None:
    """One of several processes ends with the exit status that a scheduler knows, also before its
    training has begun and after it was told to stop; the same signal may come again."""

    def leave(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)
        sys.exit(EXIT_STATUS[number])

    for number in heeded_signals():
        signal.signal(number, leave)


def _forward_signals() -> None:
    """The parent of several processes hands a SIGTERM on and waits for their checkpoint."""

    def forward(number: int, frame: Any) -> None:
        for child in multiprocessing.active_children():
            child.terminate()

    for number in heeded_signals():
        signal.signal(number, forward)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process by itself


def under_torchrun() -> bool:
    return {"RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"} <= set(os.environ)


def _join_torchrun() -> None:
    _leave_on_signals()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
