#!/usr/bin/env python3
"""Draw the curves of several runs in one picture."""

import argparse

from isonet_det.analysis.pictures import draw_comparison
from isonet_det.engine.prepare import exit_with_one_line
from isonet_det.errors import ISONetError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="LABEL=OUTPUT_DIR")
    parser.add_argument(
        "--metrics", nargs="+", required=True, help="such as total_loss bbox/AP loss_cls"
    )
    parser.add_argument("--title", default="")
    parser.add_argument("--output", required=True, help="the picture's file")
    args = parser.parse_args()

    def work() -> None:
        runs = dict(run.rpartition("=")[::2] for run in args.runs)
        if "" in runs:
            raise ISONetError(f"a run is LABEL=OUTPUT_DIR, found {args.runs}")
        draw_comparison(runs, args.metrics, args.title, args.output)

    exit_with_one_line(work)


if __name__ == "__main__":
    main()
