#!/usr/bin/env python3
"""Draw the curves of several runs in one picture."""

from isonet_det.analysis.curves import draw_comparison
from isonet_det.cli import command, tool_parser
from isonet_det.errors import ISONetError


@command
def main() -> None:
    parser = tool_parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="LABEL=OUTPUT_DIR")
    parser.add_argument(
        "--metrics", nargs="+", required=True, help="such as total_loss bbox/AP loss_cls"
    )
    parser.add_argument("--title", default="")
    parser.add_argument("--output", required=True, help="the picture's file")
    args = parser.parse_args()

    runs = dict(run.rpartition("=")[::2] for run in args.runs)
    if "" in runs:
        raise ISONetError(f"a run is LABEL=OUTPUT_DIR, found {args.runs}")
    draw_comparison(runs, args.metrics, args.title, args.output)


if __name__ == "__main__":
    main()
