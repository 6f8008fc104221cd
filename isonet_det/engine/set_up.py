"""The folder of a run."""

import argparse
import contextlib
import os
from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from filelock import FileLock, Timeout

from ..errors import ISONetError
from .logs import log_to_file
from .processes import together
from .run_info import write_run_info


@contextlib.contextmanager
def hold_output_dir(path: str) -> Iterator[None]:
    """Inside the block no other run may train in the folder; a lock ends with its process."""
    lock = FileLock(os.path.join(path, ".lock"))

    def hold() -> None:
        if comm.is_main_process():
            try:
                os.makedirs(path, exist_ok=True)
                lock.acquire(timeout=0)
            except OSError as error:
                reason = f"cannot be written: {error.strerror}"
                if isinstance(error, Timeout):
                    reason = "is in use by another run"
                raise ISONetError(f"OUTPUT_DIR {path} {reason}; name another folder") from error

    together(hold)
    try:
        yield
    finally:
        if lock.is_locked:
            os.unlink(lock.lock_file)
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
