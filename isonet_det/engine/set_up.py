"""The folder of a run."""

import argparse
import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from filelock import FileLock, Timeout

from ..errors import ISONetError
from .logs import log_to_file
from .processes import together
from .run_info import write_run_info


def check_output_dir(path: str, needed_bytes: int) -> None:
    """Check that ``path`` can be written and has room."""
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


@contextlib.contextmanager
def hold_output_dir(path: str) -> Iterator[None]:
    """Inside the block no other run may train in the folder; a lock ends with its process."""
    lock, owner = FileLock(os.path.join(path, ".lock")), Path(path, ".lock.owner")

    def hold() -> None:
        if comm.is_main_process():
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                holder = owner.read_text() if owner.is_file() else "another process"
                raise ISONetError(
                    f"OUTPUT_DIR {path} is in use: {holder} trains there; name another folder"
                ) from error
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")

    together(hold)
    try:
        yield
    finally:
        if lock.is_locked:
            owner.unlink(missing_ok=True)
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def set_up(cfg: Any, args: argparse.Namespace) -> Any:
    """Detectron2's loggers, seed and ``config.yaml`` in the folder of a run; in every process. An
    evaluation in the folder of a training run writes to ``evaluation`` in it.

    Returns:
        the config; with another folder, where it is an evaluation's.
    """
    if isinstance(cfg, CfgNode):
        if args.eval_only and os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")):
            # The folder of a training run, whose config, results and pictures stay its own.
            cfg = cfg.clone()
            cfg.defrost()
            cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "evaluation")
            cfg.freeze()
        folder = cfg.OUTPUT_DIR
    else:
        folder = cfg.train.output_dir
    os.makedirs(folder, exist_ok=True)
    log_to_file(folder, comm.get_rank())
    default_setup(cfg, args)
    if comm.is_main_process():
        write_run_info(folder, comm.get_world_size(), getattr(args, "dataset", []))
    return cfg
