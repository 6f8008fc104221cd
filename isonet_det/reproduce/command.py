"""The commands ``isonet-det table6``, ``imagenet`` and ``cells``."""

from pathlib import Path

from detectron2.utils.logger import setup_logger

from ..cli import Parser, add_dataset_argument, at_least_one, command
from ..errors import ISONetError
from ..weights.zoo import detectors_dir
from .jobs import make_jobs, plan, run_jobs
from .results import markdown, publish_rows, write_report
from .runs import find_runs
from .tables import CELLS, IMAGENET, TABLE6, Table


def _parser(table: Table) -> Parser:
    detectors = table.train_images is None
    parser = Parser(
        f"{table.title}: the commands of its rows, their runs, a report.",
        f"{Path(table.root).name} plan --rows {next(iter(table.rows))} --seeds 1",
    )
    parser.set_defaults(dataset=[], publish=None)
    commands = parser.add_subparsers(dest="command", required=True)
    plans = commands.add_parser("plan", help="print the commands")
    plans.add_argument("--launcher", choices=["local", "torchrun", "slurm"], default="local")
    plans.add_argument(
        "--num-machines", type=at_least_one, default=1, help="torchrun and slurm only"
    )
    runs = commands.add_parser("run", help="run what is not done, resume what was cut")
    report = commands.add_parser("report", help="write report.md, report.csv and report.png")
    for part in (plans, runs, report):
        part.add_argument("--root", default=table.root, help="the folder of the rows' folders")
    for part in (plans, runs):
        rows = ", ".join(table.rows)
        part.add_argument("--rows", nargs="+", default=[], metavar="ROW", help=rows)
        seeds = list(table.seeds)
        part.add_argument("--seeds", nargs="+", type=int, default=seeds, help="of every row")
        part.add_argument("--sweep", metavar="KEY=VALUE,VALUE...", help="one job per value")
        part.add_argument("--num-gpus", type=at_least_one, default=table.gpus, help="per machine")
        part.add_argument("--opts", nargs="*", default=[], help="KEY VALUE pairs for every row")
        if detectors:
            add_dataset_argument(part)
    if detectors:
        report.add_argument(
            "--publish", metavar="FOLDER", help="write the detectors of finished rows, and records"
        )
        report.add_argument("--zoo", type=Path, help="folder of the records; model_zoo/detectors")
        report.add_argument("--base-url", default="", help="where FOLDER will be")
    return parser


@command
def main(table: Table) -> None:
    """Print the commands of a table's rows, run them, or report on them."""
    args = _parser(table).parse_args()
    setup_logger(name="isonet_det")
    if args.command == "report":
        runs = find_runs(table, args.root)
        print(markdown(runs))
        print("\n".join(write_report(runs, args.root)))
        if args.publish:
            zoo = args.zoo or detectors_dir()
            published = publish_rows(runs, args.publish, zoo, args.base_url)
            if not published:
                raise ISONetError("--publish: no row has a finished run of the recipe")
            print(*published, sep="\n")
        return
    jobs = make_jobs(table, args.rows, args.seeds, args.root, args.sweep, args.opts, args.dataset)
    if args.command == "run":
        run_jobs(jobs, args.num_gpus)
    else:
        print(plan(jobs, args.launcher, args.num_gpus, args.num_machines), end="")


def table6() -> None:
    """The paper's Table 6."""
    main(TABLE6)


def imagenet() -> None:
    """The paper's ImageNet tables."""
    main(IMAGENET)


def cells() -> None:
    """Networks and Table 6 in small, on photos of blood cells."""
    main(CELLS)
