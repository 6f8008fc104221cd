#!/usr/bin/env python3
"""Write random weights in the real file formats, for trying commands where the real files cannot
be had: python tests/make_stand_ins.py FOLDER. They are good for nothing else."""

import sys
from pathlib import Path

import torch
import torchvision
from support import authors_state

from isonet_det import ISONet


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    for depth in (18, 34, 50):
        flat = authors_state(ISONet(depth, num_classes=1000))
        torch.save(flat, folder / f"R-ISONet-{depth}.pth")
        snapshot = {"net": flat, "optim": {}, "epoch": 100, "test_accuracy": 0.0}
        torch.save(snapshot, folder / f"R-ISONet-{depth}-snapshot.pth")
        resnet = getattr(torchvision.models, f"resnet{depth}")()
        torch.save(resnet.state_dict(), folder / f"resnet{depth}.pth")
    print("\n".join(str(p) for p in sorted(folder.glob("*.pth"))))


if __name__ == "__main__":
    main()
