#!/usr/bin/env python3
"""Convert the authors', torchvision's or our own weight file, or say what one is."""

import argparse
import os

from isonet_det.cli import command
from isonet_det.errors import ISONetError
from isonet_det.weights.loader import read_weights, resolve_weights
from isonet_det.weights.zoo import inspect, write_weights


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="a file, or an address as MODEL.WEIGHTS takes it")
    parser.add_argument("destination", nargs="?", help=".safetensors, .pth or .pkl")
    parser.add_argument("--inspect", action="store_true", help="only say what SOURCE is")
    args = parser.parse_args()
    if not args.inspect and args.destination is None:
        parser.error("name a DESTINATION, or --inspect")

    path = resolve_weights(args.source)
    there = not args.inspect and os.path.exists(args.destination)
    if there and os.path.samefile(path, args.destination):
        raise ISONetError(f"{args.destination} is the source itself; name another file")
    checkpoint = read_weights(path)
    print("\n".join(inspect(checkpoint)))
    if not args.inspect:
        digest = write_weights(checkpoint, args.destination)
        print(f"wrote {args.destination}, sha256 {digest}")


if __name__ == "__main__":
    main()
