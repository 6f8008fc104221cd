#!/usr/bin/env python3
"""Parameters, FLOPs and activations of any config, by fvcore; SReLU and residual scalars count."""

import argparse

from isonet_det.analysis.flops import analyze_model
from isonet_det.cli import at_least_one, command
from isonet_det.config import find_config_file, get_cfg, merge_config_file, merge_options
from isonet_det.regularizer.loss import build_model


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config_file")
    parser.add_argument("--height", type=at_least_one, default=800)
    parser.add_argument("--width", type=at_least_one, default=1216)
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs")
    args = parser.parse_args()

    cfg = get_cfg()
    merge_config_file(cfg, find_config_file(args.config_file))
    merge_options(cfg, args.opts)
    cfg.MODEL.DEVICE = "cpu"
    counts = analyze_model(build_model(cfg).eval(), args.height, args.width)
    print(f"{args.config_file}, one image of {args.height}x{args.width}")
    print("| part | parameters, M | GFLOPs |\n|---|---|---|")
    for part, parameters in counts["parameters"].items():
        name = part or "all"
        print(f"| {name} | {parameters / 1e6:.2f} | {counts['gflops'][part]:.1f} |")
    print(f"activations: {counts['million activations']['']:.1f} M")


if __name__ == "__main__":
    main()
