"""Write report.html: what a detector gets wrong, per class, by size, as TIDE's errors, as a
confusion matrix, and photo by photo. Of a run that has evaluated, or of a results file."""

import os

from ..analysis.curves import read_run_info
from ..analysis.report import find_results, write_report
from ..cli import at_least_one, check_share, command, tool_parser
from ..config import get_cfg, merge_config_file
from ..data import register_from_argument
from ..data.checks import check_registered
from ..errors import ISONetError


@command
def main() -> None:
    parser = tool_parser(__doc__, "report output/bccd", dataset=True)
    parser.add_argument("run", nargs="?", default="", help="the OUTPUT_DIR of a run")
    parser.add_argument("--results", help="a file in COCO's result format, in place of a run's")
    parser.add_argument("--score", type=float, default=0.5, help="what counts as a detection")
    parser.add_argument("--photos", type=at_least_one, default=24, help="how many are shown")
    parser.add_argument("--output", help="the file; RUN/report.html if left out")
    args = parser.parse_args()
    check_share("--score", args.score)

    results = args.results or find_results(args.run)
    # An evaluation in the run's folder has a config and data sets of its own.
    source = args.run if args.results else os.path.dirname(os.path.dirname(results))
    datasets = args.dataset or (args.run and read_run_info(source).get("datasets")) or []
    names = [register_from_argument(argument) for argument in datasets]
    if args.run:  # its own test set, whatever else was named
        cfg = get_cfg()
        merge_config_file(cfg, os.path.join(source, "config.yaml"))
        names = [name for name in cfg.DATASETS.TEST if name in names] or names
        names = names or list(cfg.DATASETS.TEST)
    elif not (args.results and names):
        raise ISONetError("name the folder of a run, or --results and its --dataset")
    if not names:
        raise ISONetError(f"the run in {args.run} has no test set; name one by --dataset")
    check_registered(names[0])
    path = args.output or os.path.join(args.run or ".", "report.html")
    write_report(names[0], results, path, run=args.run, score=args.score, photos=args.photos)
    print(path)
