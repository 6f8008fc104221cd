#!/usr/bin/env python3
"""Run a trained detector on images, folders, patterns, a video or a webcam; write pictures, or the
detections as json or csv.
Exit status 1 if an image could not be read."""

import argparse
import os
import sys

import cv2
from tqdm import tqdm

from isonet_det.cli import add_dataset_argument, at_least_one, command
from isonet_det.engine.arguments import build_cfg
from isonet_det.errors import ISONetError
from isonet_det.files import write_whole
from isonet_det.inference.predictor import (
    Predictor,
    dump_csv,
    dump_json,
    find_images,
    picture_paths,
    read_rgb,
    video_frames,
    video_rate,
)
from isonet_det.inference.slices import SlicedPredictor


def write_records(records: list[dict], args: argparse.Namespace) -> None:
    for suffix, dump in (("json", dump_json), ("csv", dump_csv)):
        if getattr(args, suffix):
            with write_whole(os.path.join(args.output, f"detections.{suffix}")) as f:
                f.write(dump(records))


def on_images(predictor: Predictor, args: argparse.Namespace) -> int:
    """Returns how many images could not be read."""
    paths = find_images(args.input)
    data = args.json or args.csv
    targets = {} if data else picture_paths(paths, args.output)
    records, unread = [], 0
    for start in tqdm(range(0, len(paths), args.batch), disable=None):
        batch = [(path, read_rgb(path)) for path in paths[start : start + args.batch]]
        for path, image in batch:
            if image is None:
                print(f"skipped: {path} cannot be read", file=sys.stderr)
                unread += 1
        images = [(path, image) for path, image in batch if image is not None]
        if not images:
            continue
        results = predictor([image for _, image in images])
        for (path, image), instances in zip(images, results, strict=True):
            if data:
                records += predictor.records(path, instances, args.score)
            else:
                drawn = predictor.draw(image, instances, args.score)
                cv2.imwrite(targets[path], drawn[:, :, ::-1])
    write_records(records, args)
    print(f"{len(paths) - unread} images, {unread} skipped: {args.output}")
    return unread


def on_video(predictor: Predictor, args: argparse.Namespace) -> int:
    source = args.video if args.video is not None else str(args.webcam)
    records, writer = [], None
    target = os.path.join(args.output, "detections.mp4")
    for number, frame in enumerate(tqdm(video_frames(source), disable=None)):
        if args.frames and number >= args.frames:
            break
        (instances,) = predictor([frame])
        if args.json or args.csv:
            records += predictor.records(f"frame {number}", instances, args.score)
            continue
        drawn = predictor.draw(frame, instances, args.score)
        if writer is None:
            size = (drawn.shape[1], drawn.shape[0])
            code = cv2.VideoWriter.fourcc(*"mp4v")
            writer = cv2.VideoWriter(target, code, video_rate(source), size)
        writer.write(drawn[:, :, ::-1].copy())
    if writer is not None:
        writer.release()
    write_records(records, args)
    print(args.output)
    return 0


@command
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", default="mask_rcnn_risonet50_fpn.yaml")
    parser.add_argument("--weights", required=True, help="a trained detector's checkpoint")
    parser.add_argument("--input", nargs="+", help="image files, folders, quoted patterns")
    parser.add_argument("--video", help="a video file")
    parser.add_argument("--webcam", type=int, help="a webcam's number")
    parser.add_argument("--frames", type=at_least_one, help="of a video or webcam, at most")
    parser.add_argument("--output", default="output/demo", help="a folder")
    parser.add_argument("--json", action="store_true", help="detections.json and no pictures")
    parser.add_argument("--csv", action="store_true", help="detections.csv and no pictures")
    parser.add_argument("--slice", type=at_least_one, help="pixels of a tile, for large photos")
    parser.add_argument("--overlap", type=float, default=0.2, help="of the tiles")
    parser.add_argument("--score", type=float, default=0.5, help="at least")
    parser.add_argument("--batch", type=at_least_one, default=1, help="images at a time")
    add_dataset_argument(parser)
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs")
    args = parser.parse_args()

    if [args.input, args.video, args.webcam].count(None) != 2:
        raise ISONetError("name one of --input, --video and --webcam")
    args.opts = ["MODEL.WEIGHTS", args.weights, *args.opts]
    predictor = Predictor(build_cfg(args.config_file, args.opts, args.dataset))
    if args.slice:
        predictor = SlicedPredictor(predictor, args.slice, args.overlap, args.score)
    os.makedirs(args.output, exist_ok=True)
    return 1 if (on_images if args.input else on_video)(predictor, args) else 0


if __name__ == "__main__":
    main()
