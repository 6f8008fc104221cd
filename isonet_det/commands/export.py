"""Export the backbone of a config, with its FPN (TorchScript, ONNX or torch.export), or a whole
trained detector (ONNX or TorchScript); the file is compared with PyTorch, and beside it stands a
.json of its outputs, classes, pixel statistics and sizes."""

import argparse
import contextlib
import os
from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.modeling import RetinaNet, build_backbone

from ..cli import command, split_options, tool_parser
from ..engine.arguments import build_cfg
from ..errors import ISONetError
from ..inference.export import (
    FORMATS,
    check_detector,
    check_export,
    export_backbone,
    export_detector,
    write_description,
)
from ..inference.predictor import Predictor, find_images
from ..weights.loader import load_weights


@contextlib.contextmanager
def checked(path: str) -> Iterator[None]:
    """A file that fails its check does not stay."""
    if path.endswith(".json"):
        raise ISONetError(f"{path} is where the description goes; name the file otherwise")
    there = os.path.exists(path)
    try:
        yield
    except BaseException:
        if not there and os.path.exists(path):
            os.remove(path)
        raise


def export_part(cfg: CfgNode, args: argparse.Namespace) -> None:
    backbone = build_backbone(cfg)
    if args.weights:
        load_weights(backbone, args.weights)
    with checked(args.output):
        names = export_backbone(backbone.eval(), args.output, args.format)
        difference = check_export(backbone, args.output, args.format)
    beside = write_description(args.output, cfg, names)
    print(f"{args.output} and {beside}: {', '.join(names)} of an image (N, 3, H, W) that is")
    print("normalized; H and W are multiples of 64, from 128 up")
    print(f"largest relative difference to PyTorch: {difference:.2g}")


def export_whole(cfg: CfgNode, args: argparse.Namespace) -> None:
    if not args.photos:
        raise ISONetError("--part detector needs --photos, to trace and to check the file with")
    photos = find_images(args.photos)
    given = any(key.endswith("NUM_CLASSES") for key in args.opts)
    predictor = Predictor(cfg, keep_classes=given)
    with checked(args.output):
        names = export_detector(predictor, photos[0], args.output, args.format)
        difference, count = check_detector(predictor, photos, args.output, args.format)
    heads = cfg.MODEL.RETINANET if isinstance(predictor.model, RetinaNet) else cfg.MODEL.ROI_HEADS
    numbers = [str(i) for i in range(heads.NUM_CLASSES)]  # where nobody knows their names
    classes = [c["name"] for c in predictor.classes or ()] or numbers
    beside = write_description(args.output, cfg, names, classes)
    print(f"{args.output} and {beside}: {', '.join(names)} of an image (3, H, W), 0 to 255")
    print(
        f"largest difference to PyTorch: {difference:.2g}, of {count} detections on {len(photos)} "
        "photos at two other sizes"
    )


@command
def main() -> None:
    parser = tool_parser(__doc__, "export output/bccd/config.yaml backbone.onnx")
    parser.add_argument("config_file", help="yours, or a ready one")
    parser.add_argument("output", help="the file to be written")
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs")
    parts = ("backbone", "detector")
    parser.add_argument("--part", choices=parts, default=parts[0], help="of the config's model")
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="of the file")
    parser.add_argument("--weights", default="", help="as MODEL.WEIGHTS")
    parser.add_argument("--photos", nargs="+", help="of a detector's objects, to check it with")
    args = parser.parse_args()
    args.photos = split_options(args.photos or [], args.opts)
    options = ["MODEL.WEIGHTS", args.weights, "MODEL.DEVICE", "cpu", *args.opts]
    cfg = build_cfg(args.config_file, options)
    (export_part if args.part == "backbone" else export_whole)(cfg, args)
