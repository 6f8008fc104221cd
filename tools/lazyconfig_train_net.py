#!/usr/bin/env python3
"""Train or evaluate from a lazy config; Detectron2's arguments, and key=value overrides."""

from detectron2.engine import default_argument_parser

from isonet_det.cli import command
from isonet_det.engine.lazy import prepare, run
from isonet_det.engine.processes import launch_processes


@command
def main() -> None:
    args = default_argument_parser().parse_args()

    prepare(args)
    launch_processes(run, args)


if __name__ == "__main__":
    main()
