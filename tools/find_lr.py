#!/usr/bin/env python3
"""Find a learning rate: train with one that grows until the loss diverges, and write the curve, the
numbers and a suggestion. Networks without normalization diverge where ResNets do not."""

import argparse
import os

from tqdm import tqdm

from isonet_det.cli import add_dataset_argument, at_least_one, command
from isonet_det.engine.arguments import make_cfg
from isonet_det.engine.find_lr import draw_sweep, suggest_rate, sweep_rates
from isonet_det.engine.step import flush_subnormals
from isonet_det.engine.trainer import Trainer
from isonet_det.errors import ISONetError
from isonet_det.files import write_whole


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", default="mask_rcnn_risonet50_fpn.yaml")
    parser.add_argument("--lowest", type=float, default=1e-5)
    parser.add_argument("--highest", type=float, default=1.0)
    parser.add_argument("--iterations", type=at_least_one, default=200, help="at most")
    parser.add_argument("--output", default="output/find_lr", help="a folder")
    add_dataset_argument(parser)
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs")
    args = parser.parse_args()
    if not 0 < args.lowest < args.highest:
        raise ISONetError(
            f"expected 0 < --lowest < --highest, got {args.lowest} and {args.highest}"
        )

    flush_subnormals()
    cfg = make_cfg(args)
    Trainer.check_data(cfg, True)
    os.makedirs(args.output, exist_ok=True)
    sweep = sweep_rates(cfg, Trainer, args.lowest, args.highest, args.iterations)
    points = list(tqdm(sweep, total=args.iterations, disable=None))
    if not points:
        raise ISONetError(f"the loss is not finite at --lowest {args.lowest}: expected a lower one")
    rates, losses = (list(values) for values in zip(*points, strict=True))
    suggestion = suggest_rate(rates, losses)
    with write_whole(os.path.join(args.output, "find_lr.csv")) as f:
        f.write("".join(["rate,loss\n", *(f"{r},{v}\n" for r, v in points)]).encode())
    path = os.path.join(args.output, "find_lr.png")
    draw_sweep(rates, losses, suggestion, path)
    print(f"{path}\nSOLVER.BASE_LR {suggestion:.2g} (for {cfg.SOLVER.IMS_PER_BATCH} images)")


if __name__ == "__main__":
    main()
