#!/usr/bin/env python3
"""Run the step of a nonfinite_*.pth dump again, on the CPU, and name the first value that is not
finite."""

import argparse

from isonet_det.cli import add_dataset_argument, command
from isonet_det.data import register_from_argument
from isonet_det.engine.replay import replay


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dump", help="the file that the run has left in its OUTPUT_DIR")
    add_dataset_argument(parser)
    args = parser.parse_args()

    for argument in args.dataset:
        register_from_argument(argument)
    print(replay(args.dump))


if __name__ == "__main__":
    main()
