"""Parameters, FLOPs and activations of any config, by fvcore; SReLU and residual scalars count."""

from ..analysis.flops import analyze_model
from ..cli import at_least_one, command, tool_parser
from ..engine.arguments import build_cfg
from ..regularizer.loss import build_model


@command
def main() -> None:
    parser = tool_parser(__doc__, "flops mask_rcnn_risonet50_fpn.yaml")
    parser.add_argument("config_file", help="yours, or a ready one")
    parser.add_argument("--height", type=at_least_one, default=800, help="pixels")
    parser.add_argument("--width", type=at_least_one, default=1216, help="pixels")
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs")
    args = parser.parse_args()

    cfg = build_cfg(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
    counts = analyze_model(build_model(cfg).eval(), args.height, args.width)
    print(f"{args.config_file}, one image of {args.height}x{args.width}")
    print("| part | parameters, M | GFLOPs |\n|---|---|---|")
    for part, parameters in counts["parameters"].items():
        print(f"| {part or 'all'} | {parameters / 1e6:.2f} | {counts['gflops'][part]:.1f} |")
    print(f"activations: {counts['million activations']['']:.1f} M")
