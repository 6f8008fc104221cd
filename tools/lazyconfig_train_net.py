#!/usr/bin/env python3
"""Train or evaluate from a lazy config; Detectron2's arguments, and key=value overrides."""

from detectron2.engine import default_argument_parser

from isonet_det.engine.lazy import prepare, run
from isonet_det.engine.prepare import exit_with_one_line, launch_processes


def main() -> None:
    args = default_argument_parser().parse_args()

    def work() -> None:
        prepare(args)
        launch_processes(run, args)

    exit_with_one_line(work)


if __name__ == "__main__":
    main()
