#!/usr/bin/env python3
"""The paper's ImageNet tables: print the commands of their rows, run them, report on them."""

from isonet_det.reproduce.command import main
from isonet_det.reproduce.tables import IMAGENET

if __name__ == "__main__":
    main(IMAGENET)
