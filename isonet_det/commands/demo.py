"""Run a trained detector on images, folders, patterns, a video or a webcam; write pictures, or the
detections as json or csv. Exit status 1 if an image could not be read."""

import argparse
import os
import sys
from collections.abc import Callable

import cv2
from tqdm import tqdm

from ..cli import at_least_one, check_share, command, split_options, tool_parser
from ..data.photos import UnreadablePhotoError
from ..engine.arguments import build_cfg
from ..errors import ISONetError
from ..files import write_file, write_picture
from ..inference import predictor as inference
from ..inference.tiles import detect_in_tiles

DUMPS = {"json": inference.dump_json, "csv": inference.dump_csv}


def on_images(predictor: inference.Predictor, detect: Callable, args: argparse.Namespace) -> int:
    """Returns how many images could not be read."""
    paths = inference.find_images(args.input)
    targets = {} if args.data else inference.picture_paths(paths, args.output)
    records, unread = [], 0
    for start in tqdm(range(0, len(paths), args.batch), disable=None):
        images = {}
        for path in paths[start : start + args.batch]:
            try:
                images[path] = inference.read_rgb(path)
            except UnreadablePhotoError as error:
                print(f"skipped: {error}", file=sys.stderr)
                unread += 1
        results = detect(list(images.values())) if images else []
        for (path, image), instances in zip(images.items(), results, strict=True):
            if args.data:
                records += predictor.records(path, instances, args.score)
            else:
                write_picture(targets[path], predictor.draw(image, instances, args.score))
    write_records(records, args)
    print(f"{len(paths) - unread} images, {unread} skipped: {args.output}")
    return unread


def on_video(predictor: inference.Predictor, detect: Callable, args: argparse.Namespace) -> int:
    rate, frames = inference.open_video(args.video or str(args.webcam))
    records, writer = [], None
    for number, frame in enumerate(tqdm(frames, disable=None)):
        if args.frames and number >= args.frames:
            break
        (instances,) = detect([frame])
        if args.data:
            records += predictor.records(f"frame {number}", instances, args.score)
            continue
        drawn = predictor.draw(frame, instances, args.score)
        if writer is None:
            path = os.path.join(args.output, "detections.mp4")
            code = cv2.VideoWriter.fourcc(*"mp4v")
            writer = cv2.VideoWriter(path, code, rate, (drawn.shape[1], drawn.shape[0]))
        writer.write(drawn[:, :, ::-1].copy())
    if writer is not None:
        writer.release()
    elif not args.data:
        raise ISONetError(f"{args.video or args.webcam} has no frame that can be read")
    write_records(records, args)
    print(args.output)
    return 0


def write_records(records: list[dict], args: argparse.Namespace) -> None:
    for suffix in args.data:
        write_file(os.path.join(args.output, f"detections.{suffix}"), DUMPS[suffix](records))


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
    parser.add_argument("--batch", type=at_least_one, default=1, help="images at a time")
    args = parser.parse_args()
    args.input = args.input and split_options(args.input, args.opts)
    check_share("--score", args.score)
    check_share("--overlap", args.overlap)
    if args.input == [] or [args.input, args.video, args.webcam].count(None) != 2:
        raise ISONetError("name one of --input, --video and --webcam")
    if args.run:
        args.config_file = os.path.join(args.run, "config.yaml")
        args.weights = args.weights or os.path.join(args.run, "model_final.pth")
    elif not args.weights:
        raise ISONetError("name the detector: --run, or --weights with its --config-file")
    args.opts = ["MODEL.WEIGHTS", args.weights, *args.opts]
    args.data = [suffix for suffix in DUMPS if getattr(args, suffix)]
    given = any(key.endswith("NUM_CLASSES") for key in args.opts)
    cfg = build_cfg(args.config_file, args.opts, args.dataset)
    predictor = inference.Predictor(cfg, keep_classes=given)

    def in_tiles(images: list) -> list:
        tiles = (args.slice, args.overlap, args.score)
        return [detect_in_tiles(predictor, image, *tiles) for image in images]

    detect = in_tiles if args.slice else predictor
    os.makedirs(args.output, exist_ok=True)
    return 1 if (on_images if args.input else on_video)(predictor, detect, args) else 0
