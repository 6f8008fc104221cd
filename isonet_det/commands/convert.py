"""Convert the authors', torchvision's or our own weight file, or say what one is."""

import os

from ..cli import command, tool_parser
from ..errors import ISONetError
from ..weights.loader import read_weights, resolve_weights
from ..weights.zoo import inspect, write_weights


@command
def main() -> None:
    parser = tool_parser(__doc__, "convert R-ISONet-50.pth mine.safetensors")
    parser.add_argument("source", help="a file, or an address as MODEL.WEIGHTS takes it")
    parser.add_argument("destination", nargs="?", help=".safetensors, .pth or .pkl")
    parser.add_argument("--inspect", action="store_true", help="only say what SOURCE is")
    args = parser.parse_args()
    target = None if args.inspect else args.destination
    if not (args.inspect or target):
        parser.error("name a DESTINATION, or --inspect")

    path = resolve_weights(args.source)
    if target and os.path.exists(target) and os.path.samefile(path, target):
        raise ISONetError(f"{target} is the source itself; name another file")
    checkpoint = read_weights(path)
    print("\n".join(inspect(checkpoint)))
    if target:
        print(f"wrote {target}, sha256 {write_weights(checkpoint, target)}")
