"""What every command shares. Imports nothing heavy, so that a tool starts at once."""

import argparse
import contextlib
import errno
import functools
import io
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

from .errors import ISONetError

# What a run exits with after it was told to stop and has saved its state: 75 is EX_TEMPFAIL of
# sysexits.h, "try again later", for schedulers that requeue.
EXIT_STATUS: dict[int, int] = {signal.SIGTERM: 75, signal.SIGHUP: 75, signal.SIGINT: 130}
MISTAKE = 2  # the exit status of wrong input


def heeded_signals() -> list[int]:
    """The signals that stop a run: not SIGHUP under nohup."""
    nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in EXIT_STATUS if not (nohup and number == signal.SIGHUP)]


# What Detectron2's use of PyTorch warns of, at import and in its first step: nobody can mend it.
_JIT_WARNING = "`torch.jit"
_WARNINGS = (
    (_JIT_WARNING, FutureWarning),
    ("`broadcast_buffers`", FutureWarning),
    ("torch.meshgrid", UserWarning),
    ("This DataLoader will create", UserWarning),  # more workers than cores: DATALOADER.NUM_WORKERS
    ("pkg_resources is deprecated", UserWarning),
    ("The value of the smallest subnormal", UserWarning),  # numpy sees that they are flushed
)
_CHATTY = (
    "torch.fx._symbolic_trace",
    "torch.multiprocessing.spawn",
    "torch.utils.cpp_extension",
    "fvcore.nn.jit_analysis",
)


def quiet_libraries() -> None:
    """Hide warnings that nobody here can act on, also of processes that are started."""
    for message, category in _WARNINGS:
        warnings.filterwarnings("ignore", message, category)
    os.environ.setdefault("PYTHONWARNINGS", f"ignore:{_JIT_WARNING}:FutureWarning")
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)


def _limit_of_the_machine(error: OSError | RuntimeError) -> str:
    """What went wrong with a file, memory or a limit; "" for a fault of code."""
    text = " ".join(str(error).split())
    if "Too many open files" in text or "ancdata" in text:  # PyTorch's, of its workers' files
        return "too many open files: ulimit -n 8192, or lower DATALOADER.NUM_WORKERS"
    if "DataLoader worker" in text:
        advice = "out of memory, or of shared memory (docker's --shm-size 8g): lower "
        advice += "DATALOADER.NUM_WORKERS, and run again with --resume"
        return f"{str(error).strip().splitlines()[0]}: {advice}"
    if isinstance(error, OSError) and (error.filename or error.errno == errno.ENOSPC):
        return f"{error.filename or 'OUTPUT_DIR'}: {error.strerror}"
    return ""


def exit_with_one_line(main: Callable[..., Any], *args: Any) -> Any:
    """Call ``main``; a mistake, a file's or a dead worker's, is one line and exit status 2."""
    try:
        return main(*args)
    except ISONetError as error:
        line = str(error)
    except ModuleNotFoundError as error:  # of an extra
        name = (error.name or "").partition(".")[0]
        if name in ("", "isonet_det", "detectron2"):
            raise
        line = f"this needs the package {name}: pip install {name}"
    except (OSError, RuntimeError) as error:
        line = _limit_of_the_machine(error)
        if not line:
            raise
    print(f"error: {line}", file=sys.stderr)
    sys.exit(MISTAKE)


class _Screen:
    """Standard output that may end before its command (``| head``): it goes on without."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper):  # whatever the names in the files
            stream.reconfigure(errors="backslashreplace")

    def _try(self, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return call(*args)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def command(main: Callable[..., int | None]) -> Callable[..., None]:
    """Decorator of a tool's ``main``, whose result is the exit status."""

    @functools.wraps(main)
    def run(*args: Any) -> None:
        quiet_libraries()
        with contextlib.redirect_stdout(_Screen(sys.stdout)):  # type: ignore[type-var]
            status = exit_with_one_line(main, *args)
            sys.stdout.flush()
        if status:
            sys.exit(status)

    return run


def at_least_one(text: str) -> int:
    """The ``type`` of an argument that counts something."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 up, got {text!r}")
    return value


def check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ISONetError(f"{name}: expected a number from 0 to 1, got {value:g}")


def split_options(words: list[str], options: list[str]) -> list[str]:
    """The words in front of ``KEY VALUE`` pairs, which go to ``options``."""
    for place, word in enumerate(words):
        if re.fullmatch(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+", word) and not os.path.exists(word):
            options[:0] = words[place:]
            return words[:place]
    return words


def add_dataset_argument(parser: argparse.ArgumentParser) -> None:
    """``--dataset``, ``--train`` and ``--val``, for data sets of a person's own."""
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="NAME=annotations.json:image_root",
        help="register a COCO-format data set of your own; repeatable",
    )
    for part, what in (("train", "train on"), ("val", "evaluate on")):
        parser.add_argument(
            f"--{part}",
            dest="dataset",
            action="append",
            type=f"own_{part}={{}}".format,
            metavar="annotations.json:image_root",
            help=f"{what} these photos of your own: the data set own_{part}",
        )


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = action.default in (None, False, "") or action.default == []
        return action.help if nothing else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A command's parser, whose help shows defaults and an example."""

    def __init__(self, description: str | None = None, example: str = "", **options: Any) -> None:
        epilog = f"example:\n  isonet-det {example}" if example else None
        options = {"formatter_class": Help, "epilog": epilog, **options}
        super().__init__(description=description, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else args
        home = os.path.expanduser("~/")  # where the shell leaves it: --output=~/found
        words = [re.sub(r"^(--[\w-]+=)?~/", rf"\g<1>{home}", word) for word in words]
        return super().parse_known_args(words, namespace)


def tool_parser(
    doc: str | None,
    example: str = "",
    *,
    config: bool = False,
    dataset: bool = False,
    output: str = "",
) -> argparse.ArgumentParser:
    """The arguments that commands share."""
    parser = Parser(doc, example)
    if config:
        parser.add_argument(
            "--config-file", default="mask_rcnn_risonet50_fpn.yaml", help="yours, or a ready one"
        )
        parser.add_argument("opts", nargs="*", help="KEY VALUE pairs")
    if config or dataset:
        add_dataset_argument(parser)
    if output:
        parser.add_argument("--output", default=output, help="a folder")
    return parser
