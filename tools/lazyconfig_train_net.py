#!/usr/bin/env python3
"""Train or evaluate from a lazy config; Detectron2's arguments, and key=value overrides."""

from detectron2.engine import default_argument_parser, launch

from isonet_det.engine import exit_with_one_line
from isonet_det.lazy import run


def _run_in_process(args) -> None:
    exit_with_one_line(run, args)


def main() -> None:
    args = default_argument_parser().parse_args()
    launch(
        _run_in_process,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


if __name__ == "__main__":
    main()
