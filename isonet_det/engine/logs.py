"""Where the lines of a run go: those before its folder is there go to the log file too."""

import contextlib
import logging
from collections.abc import Iterator
from logging.handlers import MemoryHandler

from detectron2.utils.logger import setup_logger

NAMES = ("isonet_det", "detectron2", "fvcore")


_early = MemoryHandler(10_000, logging.CRITICAL + 1)


def log_to_screen(rank: int) -> None:
    """Show the lines of the first process from now on, and keep them for :func:`log_to_file`."""
    _early.buffer.clear()
    for name in NAMES:
        _clear(name)
        setup_logger(name=name, distributed_rank=rank)
        logging.getLogger(name).addHandler(_early)


@contextlib.contextmanager
def log_to_file(folder: str, rank: int) -> Iterator[None]:
    """Let the loggers write ``log.txt`` too, from what was kept on. Detectron2's ``default_setup``,
    which sets up its own, belongs inside the block."""
    for name in NAMES:
        _clear(name)
    setup_logger(folder, distributed_rank=rank, name="isonet_det")
    yield
    _early.setTarget(logging.getLogger("isonet_det").handlers[-1])  # the file
    _early.flush()
    _early.setTarget(None)


def _clear(name: str) -> None:
    setup_logger.cache_clear()
    logging.getLogger(name).handlers.clear()
