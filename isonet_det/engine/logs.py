"""Where the lines of a run go: all to log.txt, a few to the screen."""

import logging
import re
import sys
from logging.handlers import MemoryHandler
from typing import Any

from detectron2.utils.logger import setup_logger

NAMES = ("isonet_det", "detectron2", "fvcore")
# What the screen shows of Detectron2: progress, and AP. Of this package it shows all but debug
# lines, and warnings of anybody.
SHOWN = (
    "detectron2.utils.events",
    "detectron2.engine.defaults",
    "detectron2.evaluation.testing",
    "isonet_det",
)

_early = MemoryHandler(10_000, logging.CRITICAL + 1)
_screen: list[logging.Handler] = []  # of the first process


def log_to_screen(rank: int) -> None:
    """Show the lines of the first process from now on, and keep all for :func:`log_to_file`."""
    _early.buffer.clear()
    _screen[:] = []
    if rank == 0:
        handler = logging.StreamHandler(sys.stdout)
        handler.setLevel(logging.INFO)
        handler.addFilter(_is_shown)
        handler.setFormatter(logging.Formatter("%(asctime)s %(mark)s%(message)s", "%H:%M:%S"))
        _screen.append(handler)
    for name in NAMES:
        logger = logging.getLogger(name)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        logger.handlers[:] = [_early, *_screen]


def log_to_file(folder: str, rank: int) -> None:
    """Write ``log.txt`` too, from the first line on; ``default_setup`` finds its loggers set up."""
    setup_logger.cache_clear()
    for words in ({"name": "isonet_det"}, {"name": "fvcore"}, {}):
        logger = setup_logger(folder, distributed_rank=rank, **words)
        file = logger.handlers[-1]
        file.addFilter(_without_colors)
        logger.handlers[:] = [file, *_screen]
    _early.setTarget(file)
    _early.flush()
    _early.setTarget(None)


class Progress(logging.LoggerAdapter):
    """Detectron2's progress lines, with the ``total`` number of iterations."""

    def __init__(self, logger: logging.Logger, total: int) -> None:
        super().__init__(logger)
        self.total = total

    def process(self, msg: str, kwargs: Any) -> tuple[str, Any]:
        line = re.fullmatch(r" (?:eta: (.+?)  )?iter: (\d+)  (.*?) *", msg)
        if not line:
            return msg, kwargs
        left = f", {line[1]} left" if line[1] else ""
        return f"iteration {int(line[2]) + 1} of {self.total}{left}: {line[3]}", kwargs


def _is_shown(record: logging.LogRecord) -> bool:
    warns = record.levelno >= logging.WARNING
    record.mark = f"{record.levelname}: " if warns else ""
    return (
        warns
        or record.name.startswith(SHOWN)
        or str(record.msg).startswith(("Start inference", "Inference done"))
    )


def _without_colors(record: logging.LogRecord) -> bool:
    record.msg = re.sub(r"\x1b\[[\d;]*m", "", str(record.msg))
    return True
