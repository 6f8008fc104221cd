#!/usr/bin/env python3
"""Check this machine against the recorded numbers and the CPU, and measure it: selftest.md."""

import argparse

import torch
from detectron2.utils.logger import setup_logger

from isonet_det.cli import command
from isonet_det.engine.step import flush_subnormals
from isonet_det.errors import ISONetError
from isonet_det.selftest.report import run


@command
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", default="output/selftest")
    parser.add_argument("--no-times", action="store_true", help="the checks only")
    args = parser.parse_args()
    flush_subnormals()
    setup_logger(name="isonet_det.selftest")
    try:
        device = torch.empty(1, device=args.device).device
    except (RuntimeError, AssertionError) as error:  # the latter: torch without CUDA
        reason = str(error).splitlines()[0]
        raise ISONetError(f"--device {args.device} cannot be used: {reason}") from error
    return run(device, args.output, not args.no_times)


if __name__ == "__main__":
    main()
