#!/usr/bin/env python3
"""Train or evaluate a detector; Detectron2's own arguments and --dataset."""

from isonet_det.train import main

if __name__ == "__main__":
    main()
