#!/usr/bin/env python3
"""Look over registered data sets: every photo, every annotation. Exit status 1 if training on one
of them would fail."""

import os

import isonet_det.data
from isonet_det.cli import at_least_one, command, tool_parser
from isonet_det.data.inspection import examine_dataset


@command
def main() -> int:
    parser = tool_parser(__doc__, dataset=True)
    parser.add_argument("names", nargs="*", help="registered data sets")
    parser.add_argument("--workers", type=at_least_one, default=os.cpu_count())
    args = parser.parse_args()

    own = [isonet_det.data.register_from_argument(argument) for argument in args.dataset]
    if not (names := dict.fromkeys([*args.names, *own])):
        parser.error("name a data set")
    fatal = False
    for name in names:
        findings = examine_dataset(name, args.workers)
        print(f"{name}\n{findings.report()}")
        fatal |= findings.fatal
    return int(fatal)


if __name__ == "__main__":
    main()
