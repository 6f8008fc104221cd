#!/usr/bin/env python3
"""Look over registered data sets: every photo, every annotation. Exit status 1 if training on one
of them would fail."""

import argparse
import io
import os
import sys

import isonet_det.data
from isonet_det.data.inspection import examine_dataset
from isonet_det.engine.prepare import at_least_one, exit_with_one_line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="registered data sets")
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="NAME=annotations.json:image_root",
        help="register a COCO-format data set of your own and look at it",
    )
    parser.add_argument("--workers", type=at_least_one, default=os.cpu_count())
    args = parser.parse_args()

    if isinstance(sys.stdout, io.TextIOWrapper):  # whatever the names in the files
        sys.stdout.reconfigure(errors="backslashreplace")

    def work() -> bool:
        own = [isonet_det.data.register_from_argument(argument) for argument in args.dataset]
        names = list(dict.fromkeys([*args.names, *own]))
        if not names:
            parser.error("name a data set")
        fatal = False
        for name in names:
            findings = examine_dataset(name, args.workers)
            print(f"{name}\n{findings.report()}")
            fatal |= findings.fatal
        return fatal

    sys.exit(1 if exit_with_one_line(work) else 0)


if __name__ == "__main__":
    main()
