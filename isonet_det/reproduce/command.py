"""The command line of tools/table6.py and tools/imagenet.py."""

import argparse

from detectron2.utils.logger import setup_logger

from ..engine.prepare import at_least_one, exit_with_one_line
from .report import markdown, write_report
from .tables import Table, add_arguments, find_runs, make_jobs, plan, run_jobs


def main(table: Table) -> None:
    """Print the commands of a table's rows, run them, or report on them."""
    parser = argparse.ArgumentParser(
        description=f"{table.title} of the paper: the commands of its rows, their runs, a report."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    plans = commands.add_parser("plan", help="print the commands")
    add_arguments(plans, table)
    plans.add_argument("--launcher", choices=["local", "torchrun", "slurm"], default="local")
    plans.add_argument(
        "--num-machines", type=at_least_one, default=1, help="torchrun and slurm only"
    )
    runs = commands.add_parser("run", help="run what is not done, resume what was cut")
    add_arguments(runs, table)
    report = commands.add_parser("report", help="write report.md, report.csv and report.png")
    report.add_argument("--root", default=table.root, help="the folder of the rows' folders")
    args = parser.parse_args()
    setup_logger(name="isonet_det")

    def work() -> None:
        if args.command == "report":
            found = find_runs(table, args.root)
            print(markdown(found))
            print("\n".join(write_report(found, args.root)))
            return
        jobs = make_jobs(
            table, args.rows, args.seeds, args.root, args.sweep, args.opts, args.dataset
        )
        if args.command == "run":
            run_jobs(jobs, args.num_gpus)
        else:
            print(plan(jobs, args.launcher, args.num_gpus, args.num_machines), end="")

    exit_with_one_line(work)
