"""The command line of tools/table6.py and tools/imagenet.py."""

import argparse
from pathlib import Path

from detectron2.utils.logger import setup_logger

from ..cli import add_dataset_argument, at_least_one, command
from ..weights.zoo import detectors_dir
from .jobs import make_jobs, plan, run_jobs
from .publish import publish_rows
from .report import markdown, write_report
from .runs import find_runs
from .table import Table


@command
def main(table: Table) -> None:
    """Print the commands of a table's rows, run them, or report on them."""
    parser = argparse.ArgumentParser(
        description=f"{table.title} of the paper: the commands of its rows, their runs, a report."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    plans = commands.add_parser("plan", help="print the commands")
    _add_arguments(plans, table)
    plans.add_argument("--launcher", choices=["local", "torchrun", "slurm"], default="local")
    plans.add_argument(
        "--num-machines", type=at_least_one, default=1, help="torchrun and slurm only"
    )
    runs = commands.add_parser("run", help="run what is not done, resume what was cut")
    _add_arguments(runs, table)
    report = commands.add_parser("report", help="write report.md, report.csv and report.png")
    report.add_argument("--root", default=table.root, help="the folder of the rows' folders")
    if table.train_images is None:
        report.add_argument(
            "--publish", metavar="FOLDER", help="write the detectors of finished rows, and records"
        )
        report.add_argument("--zoo", type=Path, help="folder of the records; model_zoo/detectors")
        report.add_argument("--base-url", default="", help="where FOLDER will be")
    else:
        report.set_defaults(publish=None)
    args = parser.parse_args()
    setup_logger(name="isonet_det")

    if args.command == "report":
        runs_of_table = find_runs(table, args.root)
        print(markdown(runs_of_table))
        print("\n".join(write_report(runs_of_table, args.root)))
        if args.publish:
            zoo = args.zoo or detectors_dir()
            for path in publish_rows(runs_of_table, args.publish, zoo, args.base_url):
                print(path)
        return
    jobs = make_jobs(table, args.rows, args.seeds, args.root, args.sweep, args.opts, args.dataset)
    if args.command == "run":
        run_jobs(jobs, args.num_gpus)
    else:
        print(plan(jobs, args.launcher, args.num_gpus, args.num_machines), end="")


def _add_arguments(parser: argparse.ArgumentParser, table: Table) -> None:
    """The arguments that plan and run share."""
    parser.add_argument("--root", default=table.root, help="the folder of the rows' folders")
    parser.add_argument("--rows", nargs="+", default=[], metavar="ROW", help=", ".join(table.rows))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(table.seeds))
    parser.add_argument("--sweep", metavar="KEY=VALUE,VALUE...", help="one job per value")
    parser.add_argument("--num-gpus", type=at_least_one, default=8, help="per machine")
    if table.train_images is None:
        add_dataset_argument(parser)
    else:
        parser.set_defaults(dataset=[])
    parser.add_argument("--opts", nargs="*", default=[], help="KEY VALUE pairs for every row")
