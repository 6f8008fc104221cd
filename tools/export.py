#!/usr/bin/env python3
"""Export a config's backbone, with its FPN, to TorchScript, ONNX or torch.export, and check the
file against PyTorch. What comes after the backbone (proposals, heads) is Detectron2's to export."""

import argparse

from isonet_det.cli import command
from isonet_det.inference.export import FORMATS, check_export, export_backbone
from isonet_det.weights.loader import backbone_of_config, load_weights


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config_file")
    parser.add_argument("output", help="the file to be written")
    parser.add_argument("--format", choices=FORMATS, default="onnx")
    parser.add_argument("--weights", default="", help="as MODEL.WEIGHTS")
    args = parser.parse_args()

    backbone = backbone_of_config(args.config_file)
    if args.weights:
        load_weights(backbone, args.weights)
    names = export_backbone(backbone.eval(), args.output, args.format)
    difference = check_export(backbone, args.output, args.format)
    print(f"{args.output}: {', '.join(names)} of an image (N, 3, H, W) that is normalized;")
    print("H and W are multiples of 64, from 128 up")
    print(f"largest relative difference to PyTorch: {difference:.2g}")


if __name__ == "__main__":
    main()
