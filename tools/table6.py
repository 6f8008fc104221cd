#!/usr/bin/env python3
"""The paper's Table 6: print the commands of its rows, run them, report on them."""

import argparse

from detectron2.utils.logger import setup_logger

from isonet_det.engine import exit_with_one_line
from isonet_det.table6 import add_arguments, find_runs, make_jobs, plan, run_jobs
from isonet_det.table6_report import markdown, write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    plans = commands.add_parser("plan", help="print the commands")
    add_arguments(plans)
    plans.add_argument("--launcher", choices=["local", "torchrun", "slurm"], default="local")
    plans.add_argument("--num-machines", type=int, default=1, help="torchrun and slurm only")
    add_arguments(commands.add_parser("run", help="run what is not done, resume what was cut"))
    report = commands.add_parser("report", help="write report.md, report.csv and report.png")
    report.add_argument("--root", default="output/table6", help="the folder of the rows' folders")
    args = parser.parse_args()
    setup_logger(name="isonet_det")

    def work() -> None:
        if args.command == "report":
            runs = find_runs(args.root)
            print(markdown(runs))
            print("\n".join(write_report(runs, args.root)))
            return
        jobs = make_jobs(args.rows, args.seeds, args.root, args.sweep, args.opts, args.dataset)
        if args.command == "run":
            run_jobs(jobs, args.num_gpus)
        else:
            print(plan(jobs, args.launcher, args.num_gpus, args.num_machines), end="")

    exit_with_one_line(work)


if __name__ == "__main__":
    main()
