#!/usr/bin/env python3
"""Run the step of a nonfinite_*.pth dump again, on the CPU, and name the first value that is not
finite."""

import argparse

from isonet_det.data import register_from_argument
from isonet_det.engine.divergence import replay
from isonet_det.engine.prepare import exit_with_one_line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dump", help="the file that the run has left in its OUTPUT_DIR")
    parser.add_argument("--dataset", action="append", default=[], help="as the run was given")
    args = parser.parse_args()

    def work() -> None:
        for argument in args.dataset:
            register_from_argument(argument)
        print(replay(args.dump))

    exit_with_one_line(work)


if __name__ == "__main__":
    main()
