"""Draw the curves of several runs in one picture."""

from ..analysis.curves import draw_comparison
from ..cli import command, tool_parser
from ..errors import ISONetError


@command
def main() -> None:
    parser = tool_parser(__doc__, "compare a=output/a b=output/b --metrics bbox/AP --output ab.png")
    parser.add_argument("runs", nargs="+", metavar="LABEL=OUTPUT_DIR", help="a run's folder")
    parser.add_argument(
        "--metrics", nargs="+", required=True, help="such as total_loss bbox/AP loss_cls"
    )
    parser.add_argument("--title", default="", help="of the picture")
    parser.add_argument("--output", required=True, help="the picture's file")
    args = parser.parse_args()

    runs = dict(run.partition("=")[::2] for run in args.runs)
    if "" in {*runs, *runs.values()} or len(runs) < len(args.runs):
        raise ISONetError(f"runs are LABEL=OUTPUT_DIR, each label once, found {args.runs}")
    if not args.output.endswith((".png", ".pdf", ".svg")):
        raise ISONetError(f"--output {args.output}: expected a .png, .pdf or .svg")
    draw_comparison(runs, args.metrics, args.title, args.output)
    print(args.output)
