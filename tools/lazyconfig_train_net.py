#!/usr/bin/env python3
"""Train or evaluate from a lazy config; Detectron2's arguments, and key=value overrides."""

from detectron2.engine import default_argument_parser

from isonet_det.engine import exit_with_one_line, launch_processes
from isonet_det.lazy import run


def main() -> None:
    exit_with_one_line(launch_processes, run, default_argument_parser().parse_args())


if __name__ == "__main__":
    main()
