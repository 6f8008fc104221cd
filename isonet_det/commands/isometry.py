"""How isometric the convolutions of checkpoints are: penalties, exact singular values, SReLU's
biases and residual scalars, as a table, CSV and a picture."""

import os

from tqdm import tqdm

from ..analysis.isometry import analyze_convolutions, draw, summarize, table
from ..cli import at_least_one, command, tool_parser
from ..files import write_file
from ..weights.loader import network_of


@command
def main() -> None:
    parser = tool_parser(__doc__, "isometry isonet://R-ISONet-50", output="output/isometry")
    parser.add_argument(
        "sources", nargs="+", help="weight files, MODEL.WEIGHTS addresses, or configs (.yaml)"
    )
    parser.add_argument("--size", type=at_least_one, default=8, help="pixels of the periodic image")
    args = parser.parse_args()

    os.makedirs(args.output, exist_ok=True)
    reports = {}
    for i, source in enumerate(tqdm(args.sources, disable=None)):
        network = network_of(source)
        reports[source] = analyze_convolutions(network, args.size)
        write_file(os.path.join(args.output, f"{i}.csv"), table(reports[source]))
        print(f"{source}\n{'penalty':>10} {'smallest':>9} {'median':>9} {'largest':>9}")
        for r in reports[source]:
            print(f"{r.penalty:10.4g} {r.smallest:9.4g} {r.median:9.4g} {r.largest:9.4g} {r.name}")
        print("\n".join(f"{name} {value:.4g}" for name, value in summarize(network).items()))
    path = os.path.join(args.output, "isometry.png")
    draw(reports, path)
    print(path)
