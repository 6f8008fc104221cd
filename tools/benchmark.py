#!/usr/bin/env python3
"""Measure the penalty, SReLU, or two detectors; interleaved in one process, medians and ratios."""

import argparse

import torch
from benchmarks.coco_evaluation import benchmark_evaluation
from detectron2.config import CfgNode
from tqdm import tqdm

from isonet_det.cli import at_least_one, command
from isonet_det.config import find_config_file, get_cfg, merge_config_file, merge_options
from isonet_det.errors import ISONetError
from isonet_det.selftest.measure import (
    backbone_bytes,
    benchmark_detectors,
    benchmark_penalty,
    benchmark_srelu,
    gemm_peak,
)

MAPS = [(1, 256, 200, 320), (2, 64, 200, 320), (2, 512, 100, 160), (8, 64, 32, 32), (8, 512, 4, 4)]


def penalty(args: argparse.Namespace, device: torch.device) -> None:
    peak = gemm_peak(device)
    print(f"float32 matrix product, 1024: {peak / 1e9:.0f} GFLOP/s")
    print("| R-ISONet | ours, ms | formula, ms | ratio | G multiply-adds | GFLOP/s | of the peak |")
    print("|---|---|---|---|---|---|---|")
    for depth in tqdm(args.depths, disable=None):
        r = benchmark_penalty(depth, device, args.repeats)
        print(
            f"| {depth} | {1e3 * r['ours']:.1f} | {1e3 * r['formula']:.1f} | {r['ratio']:.1f} | "
            f"{r['multiply_adds'] / 1e9:.1f} | {r['flops'] / 1e9:.0f} | {r['flops'] / peak:.0%} |"
        )


def srelu(args: argparse.Namespace, device: torch.device) -> None:
    print(
        "| map | ours, ms | formula, ms | ratio | kept beside the output, MB | formula keeps, MB |"
    )
    print("|---|---|---|---|---|---|")
    for shape in tqdm(MAPS, disable=None):
        r = benchmark_srelu(shape, device, 10 * args.repeats)
        print(
            f"| {'x'.join(map(str, shape))} | {1e3 * r['ours']:.3f} | {1e3 * r['formula']:.3f} | "
            f"{r['ratio']:.2f} | {r['kept'] / 1e6:.2f} | {r['formula_kept'] / 1e6:.2f} |"
        )


def evaluation(args: argparse.Namespace, device: torch.device) -> None:
    print(f"{args.images} images with 100 detections each")
    print("| task | ours, s | pycocotools, s | ratio | largest difference of the 12 numbers |")
    print("|---|---|---|---|---|")
    for task, r in benchmark_evaluation(args.images).items():
        print(
            f"| {task} | {r['ours']:.1f} | {r['pycocotools']:.1f} | {r['ratio']:.1f} | "
            f"{r['difference']:.1g} |"
        )


def _configs(args: argparse.Namespace, device: torch.device) -> dict[str, CfgNode]:
    """Every config file, and every variant of it."""
    cfgs = {}
    for file in args.config_file:
        for variant in ("", *args.variant):
            cfg = get_cfg()
            merge_config_file(cfg, find_config_file(file))
            merge_options(cfg, [*args.opts, *variant.split()])
            cfg.MODEL.DEVICE = str(device)
            cfgs[f"{file} {variant}".strip()] = cfg
    return cfgs


def memory(args: argparse.Namespace, device: torch.device) -> None:
    print(f"backbone and FPN, {args.images} images of {args.height}x{args.width}, counted")
    print("| config | kept for the backward pass, MB per image | relative |")
    print("|---|---|---|")
    first = None
    for name, cfg in _configs(args, device).items():
        kept = backbone_bytes(cfg, args.images, args.height, args.width)
        first = first or kept
        print(f"| {name} | {kept / args.images / 1e6:.1f} | {kept / first:.4f} |")


def detectors(args: argparse.Namespace, device: torch.device) -> None:
    cfgs = _configs(args, device)
    results = benchmark_detectors(
        list(cfgs.values()), args.what, args.images, args.height, args.width, args.repeats
    )
    print(f"{args.what}, {args.images} images of {args.height}x{args.width}")
    print("| config | seconds | relative | images/s | peak memory, MB |")
    print("|---|---|---|---|---|")
    for name, r in zip(cfgs, results, strict=True):
        memory = f"{r['peak_bytes'] / 1e6:.0f}" if r["peak_bytes"] else "not measured"
        print(
            f"| {name} | {r['seconds']:.3f} | {r['seconds'] / results[0]['seconds']:.3f} | "
            f"{r['images_per_second']:.2f} | {memory} |"
        )


MEASURES = {"penalty": penalty, "srelu": srelu, "memory": memory, "evaluation": evaluation}


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=[*MEASURES, "train", "inference"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=at_least_one, help="CPU threads")
    parser.add_argument("--repeats", type=at_least_one, default=7)
    parser.add_argument("--depths", type=int, nargs="+", default=[18, 34, 50, 101])
    parser.add_argument("--config-file", action="append", help="repeatable")
    parser.add_argument(
        "--variant", action="append", default=[], metavar="'KEY VALUE ...'", help="beside each"
    )
    parser.add_argument("--images", type=at_least_one, default=2)
    parser.add_argument("--height", type=at_least_one, default=800)
    parser.add_argument("--width", type=at_least_one, default=1216)
    parser.add_argument("--opts", nargs="*", default=[], help="KEY VALUE pairs for every config")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.what in ("memory", "train", "inference") and not args.config_file:
        parser.error("name the configs to be compared: --config-file A --config-file B")
    try:
        device = torch.device(args.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter: torch without CUDA
        reason = str(error).splitlines()[0]
        raise ISONetError(f"--device {args.device} cannot be used: {reason}") from error
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} CPU threads")
    MEASURES.get(args.what, detectors)(args, device)


if __name__ == "__main__":
    main()
