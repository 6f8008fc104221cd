#!/usr/bin/env python3
"""Box AP on the drawn shapes against images per GPU, for R-ISONet-18 and for the same network with
BatchNorm and with GroupNorm, from scratch. Every run sees the same images in the same steps of 8;
"k images per GPU" are 8 / k micro-batches of k, over which BatchNorm takes its statistics. Runs
that are done are not repeated."""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from isonet_det.analysis.curves import pyplot, read_metrics
from isonet_det.cli import at_least_one, command
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
    (args.root / "box_ap.json").write_text(json.dumps(values, indent=1) + "\n")
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
    print(f"| network | {' | '.join(f'{k} per GPU' for k in args.images)} |")
    print("|---" * (len(args.images) + 1) + "|")
    for network, rows in values.items():
        means, spread = np.mean(rows, 1), np.std(rows, 1, ddof=1 if len(args.seeds) > 1 else 0)
        axis.errorbar(args.images, means, spread, marker="o", capsize=3, label=network)
        cells = [f"{m:.1f} ± {d:.1f}" for m, d in zip(means, spread, strict=True)]
        print(f"| {network} | {' | '.join(cells)} |")
    axis.set_xscale("log", base=2)
    axis.set_xticks(args.images, [str(k) for k in args.images])
    axis.set(xlabel="images per GPU, 8 per step in all", ylabel="box AP on the drawn shapes")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend()
    path = args.root / "images_per_gpu.png"
    figure.savefig(path, dpi=110)
    print(path)


if __name__ == "__main__":
    main()
