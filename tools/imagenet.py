#!/usr/bin/env python3
"""The paper's ImageNet tables: print the commands of their rows, run them, report on them."""

from isonet_det.imagenet import IMAGENET
from isonet_det.table_tool import main

if __name__ == "__main__":
    main(IMAGENET)
