"""Run a trained detector on images, folders, patterns, a video or a webcam; write pictures, or the
detections as json or csv. Exit status 1 if an image could not be read."""

import argparse
import itertools
import os
import sys
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from tqdm import tqdm

from ..cli import at_least_one, check_share, command, split_options, tool_parser
from ..data.photos import UnreadablePhotoError
from ..engine.arguments import build_cfg
from ..errors import ISONetError
from ..files import write_file, write_picture
from ..inference import predictor as inference
from ..inference.tiles import detect_in_tiles

DUMPS = {"json": inference.dump_json, "csv": inference.dump_csv}


def read_photos(paths: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Path and pixels; a photo that cannot be read is named and left out."""
    for path in paths:
        try:
            yield path, inference.read_rgb(path)
        except UnreadablePhotoError as error:
            print(f"skipped: {error}", file=sys.stderr)


def detect_all(predictor: inference.Predictor, args: argparse.Namespace) -> int:
    """Write what is found; returns how many images could not be read."""
    paths = inference.find_images(args.input) if args.input else []
    targets = {} if args.data else inference.picture_paths(paths, args.output)
    images, rate = read_photos(paths), 0.0
    if not args.input:
        rate, frames = inference.open_video(args.video or str(args.webcam))
        numbered = enumerate(itertools.islice(frames, args.frames))
        images = ((f"frame {number}", frame) for number, frame in numbered)
    records, writer, count = [], None, 0
    for source, image in tqdm(images, total=len(paths) or args.frames, disable=None):
        count += 1
        if args.slice:
            tiles = (args.slice, args.overlap, args.score)
            instances = detect_in_tiles(predictor, image, *tiles)
        else:
            (instances,) = predictor([image])
        if args.data:
            records += predictor.records(source, instances, args.score)
            continue
        drawn = predictor.draw(image, instances, args.score)
        if args.input:
            write_picture(targets[source], drawn)
            continue
        if writer is None:
            path = os.path.join(args.output, "detections.mp4")
            code, size = cv2.VideoWriter.fourcc(*"mp4v"), (drawn.shape[1], drawn.shape[0])
            writer = cv2.VideoWriter(path, code, rate, size)
        writer.write(drawn[:, :, ::-1].copy())
    if writer is not None:
        writer.release()
    if not (count or args.input):
        raise ISONetError(f"{args.video or args.webcam} has no frame that can be read")
    for suffix in args.data:
        write_file(os.path.join(args.output, f"detections.{suffix}"), DUMPS[suffix](records))
    unread = len(paths) - count if args.input else 0
    print(f"{count} images, {unread} skipped: {args.output}")
    return unread


@command
def main() -> int:
    parser = tool_parser(
        __doc__, "demo --run output/bccd --input photos", config=True, output="output/demo"
    )
    parser.add_argument("--run", help="the OUTPUT_DIR of a run, for its config and weights")
    parser.add_argument("--weights", help="a trained detector's checkpoint")
    parser.add_argument("--input", nargs="+", help="image files, folders, quoted patterns")
    parser.add_argument("--video", help="a video file")
    parser.add_argument("--webcam", type=int, help="a webcam's number")
    parser.add_argument("--frames", type=at_least_one, help="of a video or webcam, at most")
    for suffix in DUMPS:
        text = f"detections.{suffix} and no pictures"
        parser.add_argument(f"--{suffix}", action="store_true", help=text)
    parser.add_argument("--slice", type=at_least_one, help="pixels of a tile, for large photos")
    parser.add_argument("--overlap", type=float, default=0.2, help="of the tiles")
    parser.add_argument("--score", type=float, default=0.5, help="at least")
    args = parser.parse_args()
    args.input = args.input and split_options(args.input, args.opts)
    check_share("--score", args.score)
    check_share("--overlap", args.overlap)
    if args.input == [] or [args.input, args.video, args.webcam].count(None) != 2:
        raise ISONetError("name one of --input, --video and --webcam")
    if args.run:
        if args.config_file != parser.get_default("config_file"):
            raise ISONetError("--run has a config of its own; leave --config-file out")
        args.config_file = os.path.join(args.run, "config.yaml")
        args.weights = inference.weights_of_run(args.run, args.weights or "")
    elif not args.weights:
        raise ISONetError("name the detector: --run, or --weights with its --config-file")
    args.opts = ["MODEL.WEIGHTS", args.weights, *args.opts]
    args.data = [suffix for suffix in DUMPS if getattr(args, suffix)]
    given = any(key.endswith("NUM_CLASSES") for key in args.opts)
    cfg = build_cfg(args.config_file, args.opts, args.dataset)
    predictor = inference.Predictor(cfg, keep_classes=given)
    os.makedirs(args.output, exist_ok=True)
    return int(detect_all(predictor, args) > 0)
