#!/usr/bin/env python3
"""Box AP on the drawn shapes against images per GPU, for R-ISONet-18 and for the same network with
BatchNorm and with GroupNorm, from scratch. Every run sees the same images in the same steps of 8;
"k images per GPU" are 8 / k micro-batches of k, over which BatchNorm takes its statistics. Beside
it, how far the gradient of a step of micro-batches is from that of 8 images at once. Runs that are
done are not repeated."""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from isonet_det import build_model, get_cfg, load_weights
from isonet_det.analysis.curves import pyplot, read_metrics
from isonet_det.cli import at_least_one, command
from isonet_det.config import merge_config_file
from isonet_det.data import render_shapes
from isonet_det.errors import ISONetError

BATCH = 8
# The paper's ResNet beside R-ISONet: ReLU, Kaiming initialization, no scalars (its Table 4).
NORMALIZED = [
    "MODEL.ISONET.ACTIVATION", "relu", "MODEL.ISONET.INIT", "kaiming",
    "MODEL.ISONET.HAS_RES_MULTIPLIER", "False", "MODEL.ISONET.ORTHO_COEFF", "0.0",
]  # fmt: skip
NETWORKS = {
    "R-ISONet": [],
    "BatchNorm": [*NORMALIZED, "MODEL.ISONET.NORM", "BN"],
    "GroupNorm": [*NORMALIZED, "MODEL.ISONET.NORM", "GN"],
}


def run_folder(root: Path, network: str, images: int, seed: int) -> Path:
    return root / f"{network}-{images}-seed{seed}"


def train(root: Path, network: str, images: int, seed: int, options: list[str]) -> None:
    folder = run_folder(root, network, images, seed)
    if (folder / "model_final.pth").is_file():
        return
    words = [
        sys.executable, "-W", "ignore", "-m", "isonet_det.train", "--config-file",
        "quickstart.yaml", "--resume", *NETWORKS[network], "OUTPUT_DIR", str(folder),
        "SOLVER.IMS_PER_BATCH", str(BATCH), "SOLVER.ACCUMULATE_STEPS", str(BATCH // images),
        "TEST.EXPECTED_RESULTS", "[]", "TEST.EVAL_PERIOD", "0", "TEST.REPORT", "False",
        "SOLVER.CHECKPOINT_PERIOD", "0", "SEED", str(seed), *options,
    ]  # fmt: skip
    result = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if result.returncode:
        raise ISONetError(f"{folder.name}: {result.stderr.strip().splitlines()[-1]}")


def box_ap(root: Path, network: str, images: int, seed: int) -> float:
    rows = [r for r in read_metrics(str(run_folder(root, network, images, seed))) if "bbox/AP" in r]
    value = rows[-1]["bbox/AP"] if rows else 0.0
    return 0.0 if np.isnan(value) else value  # no detection at all


def drawn_images(folder: Path) -> torch.Tensor:
    """(8, 3, 96, 96) float64, mean 0 and standard deviation 1."""
    if not folder.is_dir():
        render_shapes(folder, BATCH + 1, seed=3)
    paths = sorted((folder / "images").glob("*.png"))[:BATCH]
    pixels = np.stack([cv2.resize(cv2.imread(str(path)), (96, 96)) for path in paths])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).double()
    return (images - images.mean()) / images.std()


def gradient_differences(run: Path, per_gpu: list[int], images: torch.Tensor) -> list[float]:
    """For a run's trained backbone and the mean square of its feature maps as the loss: the
    relative difference, over all weights, of the gradient accumulated over micro-batches and that
    of all images at once, in float64."""
    cfg = get_cfg()
    merge_config_file(cfg, str(run / "config.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    load_weights(model, str(run / "model_final.pth"), whole=True)
    backbone: torch.nn.Module = model.backbone  # type: ignore[assignment]
    backbone.double().train()

    def gradient(size: int) -> torch.Tensor:
        backbone.zero_grad()
        for part in images.split(size):
            loss = torch.stack([maps.square().mean() for maps in backbone(part).values()]).sum()
            (loss * size / BATCH).backward()
        return torch.cat([p.grad.flatten() for p in backbone.parameters() if p.grad is not None])

    whole = gradient(BATCH)
    return [float((gradient(size) - whole).norm() / whole.norm()) for size in per_gpu]


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("output/images_per_gpu"))
    parser.add_argument("--images", type=int, nargs="+", default=[1, 2, 4, 8], help="per GPU")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=at_least_one, default=1, help="runs at a time")
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs for every run")
    args = parser.parse_args()
    if any(images < 1 or BATCH % images for images in args.images):
        raise ISONetError(f"--images: expected divisors of {BATCH}, got {args.images}")

    jobs = [(n, k, s) for s in args.seeds for k in args.images for n in NETWORKS]
    with ThreadPoolExecutor(args.jobs) as pool:
        work = [pool.submit(train, args.root, *job, args.opts) for job in jobs]
        for done in tqdm(work, unit="run", disable=None):
            done.result()
    values = {
        network: [[box_ap(args.root, network, k, s) for s in args.seeds] for k in args.images]
        for network in NETWORKS
    }
    pixels = drawn_images(args.root / "images")
    differences = {
        network: gradient_differences(
            run_folder(args.root, network, args.images[-1], args.seeds[0]), args.images, pixels
        )
        for network in NETWORKS
    }
    content = {"box_ap": values, "gradient_difference": differences}
    (args.root / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    plt = pyplot()
    figure, (axis, exactness) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    print(f"| network | {' | '.join(f'{k} per GPU' for k in args.images)} |")
    print("|---" * (len(args.images) + 1) + "|")
    for network, rows in values.items():
        means, spread = np.mean(rows, 1), np.std(rows, 1, ddof=1 if len(args.seeds) > 1 else 0)
        axis.errorbar(args.images, means, spread, marker="o", capsize=3, label=network)
        cells = [f"{m:.1f} ± {d:.1f}" for m, d in zip(means, spread, strict=True)]
        print(f"| {network} | {' | '.join(cells)} |")
    print(f"| relative difference of the gradient |{' |' * len(args.images)}")
    for network, row in differences.items():
        exactness.plot(args.images, np.maximum(row, 1e-17), marker="o", label=network)
        print(f"| {network} | {' | '.join(f'{value:.1e}' for value in row)} |")
    for one in (axis, exactness):
        one.set_xscale("log", base=2)
        one.set_xticks(args.images, [str(k) for k in args.images])
        one.set(xlabel=f"images per GPU, {BATCH} per step in all")
        one.grid(alpha=0.3)
        one.legend()
    axis.set(ylabel="box AP on the drawn shapes", title=f"{len(args.seeds)} seeds from scratch")
    axis.set_ylim(bottom=0)
    exactness.set_yscale("log")
    exactness.set(ylabel="relative difference", title=f"Gradient against {BATCH} images at once")
    path = args.root / "images_per_gpu.png"
    figure.savefig(path, dpi=110)
    print(path)


if __name__ == "__main__":
    main()
