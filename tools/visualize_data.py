#!/usr/bin/env python3
"""Write what the training loader feeds, after augmentation, as pictures with their annotations."""

import argparse
import os

from tqdm import tqdm

from isonet_det.analysis.pictures import draw_training_image
from isonet_det.cli import add_dataset_argument, at_least_one, command
from isonet_det.data.stream import build_train_loader
from isonet_det.engine.arguments import make_cfg
from isonet_det.files import write_picture


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", default="mask_rcnn_risonet50_fpn.yaml")
    add_dataset_argument(parser)
    parser.add_argument("--count", type=at_least_one, default=16, help="images")
    parser.add_argument("--output", default="output/data", help="a folder")
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs")
    args = parser.parse_args()

    cfg = make_cfg(args)
    os.makedirs(args.output, exist_ok=True)
    images = (image for batch in build_train_loader(cfg, max(cfg.SEED, 0)) for image in batch)
    for i in tqdm(range(args.count), disable=None):
        image = next(images)
        name = os.path.splitext(os.path.basename(image["file_name"]))[0]
        drawn = draw_training_image(cfg, image)
        write_picture(os.path.join(args.output, f"{i:04d}-{name}.png"), drawn)
    print(f"{args.count} images: {args.output}")


if __name__ == "__main__":
    main()
