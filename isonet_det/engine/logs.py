"""Where the lines of a run go: those before its folder is there go to the log file too."""

import contextlib
import logging
import sys
from collections.abc import Iterator

from detectron2.utils.logger import setup_logger

NAMES = ("isonet_det", "detectron2", "fvcore")


class _Early(logging.Handler):
    """Keeps records until there is a file for them."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


_early = _Early()


def log_to_screen(rank: int) -> None:
    """Show the lines of the first process from now on, and keep them for :func:`log_to_file`."""
    _early.records.clear()
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
    records, _early.records = _early.records, []
    for record in records:
        for handler in logging.getLogger(record.name.split(".")[0]).handlers:
            if getattr(handler, "stream", sys.stdout) is not sys.stdout:
                handler.handle(record)


def _clear(name: str) -> None:
    setup_logger.cache_clear()
    logging.getLogger(name).handlers.clear()
