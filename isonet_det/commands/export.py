"""Export the backbone of a config, with its FPN, or a whole trained detector. The file is compared
with PyTorch, and beside it stands a .json of its outputs, classes, pixel statistics and sizes."""

import argparse
import os

from detectron2.config import CfgNode
from detectron2.modeling import RetinaNet, build_backbone

from ..cli import command, split_options, tool_parser
from ..engine.arguments import build_cfg
from ..errors import ISONetError
from ..files import write_file
from ..inference.export import (
    FORMATS,
    check_backbone,
    check_detector,
    export_backbone,
    export_detector,
    write_description,
)
from ..inference.predictor import Predictor, find_images
from ..weights.loader import load_weights


def export_part(cfg: CfgNode, args: argparse.Namespace) -> tuple[bytes, list[str], list[str], str]:
    """The content of the file, names of its outputs and classes, and how it compares."""
    backbone = build_backbone(cfg).eval()
    load_weights(backbone, cfg.MODEL.WEIGHTS)
    content, names = export_backbone(backbone, args.format)
    difference = check_backbone(backbone, content, args.format)
    return content, names, [], f"{difference:.2g}, relative, on a random image"


def export_whole(cfg: CfgNode, args: argparse.Namespace) -> tuple[bytes, list[str], list[str], str]:
    if not args.photos:
        raise ISONetError("--part detector needs --photos, to trace and to check the file with")
    photos = find_images(args.photos)
    given = any(key.endswith("NUM_CLASSES") for key in args.opts)
    predictor = Predictor(cfg, keep_classes=given)
    content, names = export_detector(predictor, photos[0], args.format)
    difference, count = check_detector(predictor, photos, content, args.format)
    heads = cfg.MODEL.RETINANET if isinstance(predictor.model, RetinaNet) else cfg.MODEL.ROI_HEADS
    numbers = [str(i) for i in range(heads.NUM_CLASSES)]  # where nobody knows their names
    classes = [c["name"] for c in predictor.classes or ()] or numbers
    return content, names, classes, f"{difference:.2g}, of {count} detections"


@command
def main() -> None:
    parser = tool_parser(
        __doc__, "export bccd.yaml backbone.onnx --weights output/bccd/model_final.pth"
    )
    parser.add_argument("config_file", help="yours, or a ready one")
    parser.add_argument("output", help="the file to be written")
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs")
    parts = ("backbone", "detector")
    parser.add_argument("--part", choices=parts, default=parts[0], help="of the config's model")
    parser.add_argument("--format", choices=FORMATS, help="of the file; onnx if it ends so")
    parser.add_argument("--weights", default="", help="as MODEL.WEIGHTS")
    parser.add_argument("--photos", nargs="+", help="of a detector's objects, to check it with")
    args = parser.parse_intermixed_args()
    if args.output.endswith(".json"):
        raise ISONetError(f"{args.output} is where the description goes; name the file otherwise")
    args.photos = split_options(args.photos or [], args.opts)
    if args.weights or "MODEL.WEIGHTS" not in args.opts:
        trained = os.path.join(os.path.dirname(args.config_file), "model_final.pth")
        if not args.weights and os.path.isfile(trained):
            raise ISONetError(f"the weights of this run: expected --weights {trained}")
        args.opts += ["MODEL.WEIGHTS", args.weights]
    if not args.format and not args.output.endswith(".onnx"):
        raise ISONetError(f"{args.output}: expected a file.onnx, or a --format, one of {FORMATS}")
    args.format = args.format or "onnx"
    cfg = build_cfg(args.config_file, ["MODEL.DEVICE", "cpu", *args.opts])
    export = export_part if args.part == "backbone" else export_whole
    content, names, classes, difference = export(cfg, args)
    beside = write_description(args.output, cfg, names, classes)
    write_file(args.output, content)
    what = "" if cfg.MODEL.WEIGHTS else "; without --weights, not trained"
    print(f"{args.output} and {beside}: {', '.join(names)}{what}")
    print(f"largest difference to PyTorch: {difference}")
