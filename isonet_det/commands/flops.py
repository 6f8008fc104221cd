"""Parameters, FLOPs and activations of any config, by fvcore."""

import torch
from detectron2.utils.analysis import FlopCountAnalysis, activation_count_operators
from fvcore.nn import parameter_count

from ..cli import at_least_one, command, tool_parser
from ..engine.arguments import build_cfg
from ..regularizer.loss import build_model


@command
def main() -> None:
    parser = tool_parser(__doc__, "flops mask_rcnn_risonet50_fpn.yaml")
    parser.add_argument("config_file", help="yours, or a ready one")
    parser.add_argument("--height", type=at_least_one, help="pixels; 800, or of INPUT.CROP")
    parser.add_argument("--width", type=at_least_one, help="pixels; 1216, or of INPUT.CROP")
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs")
    args = parser.parse_intermixed_args()

    cfg = build_cfg(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
    model, crop = build_model(cfg).eval(), cfg.INPUT.CROP
    fixed = crop.ENABLED and crop.TYPE == "absolute"  # DeepLab's image pooling is of that size
    height, width = (int(side) for side in (crop.SIZE if fixed else (800, 1216)))
    height, width = args.height or height, args.width or width
    image = [{"image": torch.zeros(3, height, width), "height": height, "width": width}]
    flops = FlopCountAnalysis(model, image)
    flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    by_module, parameters = flops.by_module(), parameter_count(model)
    print(f"{args.config_file}, one image of {height}x{width}")
    print("| part | parameters, M | GFLOPs |\n|---|---|---|")
    for part in ("", *(name for name, _ in model.named_children()), "backbone.bottom_up"):
        if part in parameters:
            # Detectron2's tracing adapter calls the detector "model".
            gflops = by_module[f"model.{part}" if part else ""] / 1e9
            print(f"| {part or 'all'} | {parameters[part] / 1e6:.2f} | {gflops:.1f} |")
    activations = sum(activation_count_operators(model, image).values())
    print(f"activations: {activations:.1f} M")
