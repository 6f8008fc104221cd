"""Look over registered data sets: every photo, every annotation. Exit status 1 if training on one
of them would fail."""

import os

from ..cli import at_least_one, command, tool_parser
from ..data import register_from_argument
from ..data.inspection import examine_dataset


@command
def main() -> int:
    parser = tool_parser(__doc__, "check --dataset mine=train.json:photos", dataset=True)
    parser.add_argument("names", nargs="*", help="registered data sets")
    parser.add_argument("--workers", type=at_least_one, default=os.cpu_count(), help="processes")
    args = parser.parse_args()

    own = [register_from_argument(argument) for argument in args.dataset]
    if not (names := dict.fromkeys([*args.names, *own])):
        parser.error("name a data set")
    fatal = False
    for name in names:
        counts, findings = examine_dataset(name, args.workers)
        print("\n  ".join([name, *counts]), findings.report(), sep="\n")
        fatal |= bool(findings.fatal)
    return int(fatal)
