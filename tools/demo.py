#!/usr/bin/env python3
"""Run a trained detector on images, folders, patterns, a video or a webcam; write pictures or json.
Exit status 1 if an image could not be read."""

import argparse
import os
import sys

import cv2
from tqdm import tqdm

from isonet_det.engine.prepare import at_least_one, exit_with_one_line, make_cfg
from isonet_det.errors import ISONetError
from isonet_det.files import write_whole
from isonet_det.inference.predictor import (
    Predictor,
    dump_json,
    find_images,
    picture_paths,
    read_rgb,
    video_frames,
    video_rate,
)


def on_images(predictor: Predictor, args: argparse.Namespace) -> int:
    """Returns how many images could not be read."""
    paths = find_images(args.input)
    targets = {} if args.json else picture_paths(paths, args.output)
    records, unread = [], 0
    for start in tqdm(range(0, len(paths), args.batch), disable=None):
        batch = [(path, read_rgb(path)) for path in paths[start : start + args.batch]]
        for path, image in batch:
            if image is None:
                print(f"skipped: {path} cannot be read", file=sys.stderr)
                unread += 1
        there = [(path, image) for path, image in batch if image is not None]
        if not there:
            continue
        for (path, image), found in zip(
            there, predictor([image for _, image in there]), strict=True
        ):
            if args.json:
                records += predictor.records(path, found, args.score)
            else:
                drawn = predictor.draw(image, found, args.score)
                cv2.imwrite(targets[path], drawn[:, :, ::-1])
    if args.json:
        with write_whole(os.path.join(args.output, "detections.json")) as f:
            f.write(dump_json(records))
    print(f"{len(paths) - unread} images, {unread} skipped: {args.output}")
    return unread


def on_video(predictor: Predictor, args: argparse.Namespace) -> int:
    source = args.video if args.video is not None else str(args.webcam)
    records, writer = [], None
    target = os.path.join(args.output, "detections.mp4")
    for number, frame in enumerate(tqdm(video_frames(source), disable=None)):
        if args.frames and number >= args.frames:
            break
        (found,) = predictor([frame])
        if args.json:
            records += predictor.records(f"frame {number}", found, args.score)
            continue
        drawn = predictor.draw(frame, found, args.score)
        if writer is None:
            size = (drawn.shape[1], drawn.shape[0])
            code = cv2.VideoWriter.fourcc(*"mp4v")
            writer = cv2.VideoWriter(target, code, video_rate(source), size)
        writer.write(drawn[:, :, ::-1].copy())
    if writer is not None:
        writer.release()
    if args.json:
        with write_whole(os.path.join(args.output, "detections.json")) as f:
            f.write(dump_json(records))
    print(args.output)
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", default="mask_rcnn_risonet50_fpn.yaml")
    parser.add_argument("--weights", required=True, help="a trained detector's checkpoint")
    parser.add_argument("--input", nargs="+", help="image files, folders, quoted patterns")
    parser.add_argument("--video", help="a video file")
    parser.add_argument("--webcam", type=int, help="a webcam's number")
    parser.add_argument("--frames", type=at_least_one, help="of a video or webcam, at most")
    parser.add_argument("--output", default="output/demo", help="a folder")
    parser.add_argument("--json", action="store_true", help="detections.json and no pictures")
    parser.add_argument("--score", type=float, default=0.5, help="at least")
    parser.add_argument("--batch", type=at_least_one, default=1, help="images at a time")
    parser.add_argument("--dataset", action="append", default=[], help="as for train_net.py")
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs")
    args = parser.parse_args()

    def work() -> int:
        if [args.input, args.video, args.webcam].count(None) != 2:
            raise ISONetError("name one of --input, --video and --webcam")
        args.opts = ["MODEL.WEIGHTS", args.weights, *args.opts]
        predictor = Predictor(make_cfg(args))
        os.makedirs(args.output, exist_ok=True)
        return (on_images if args.input else on_video)(predictor, args)

    sys.exit(1 if exit_with_one_line(work) else 0)


if __name__ == "__main__":
    main()
