#!/usr/bin/env python3
"""``isonet-det imagenet``."""

from isonet_det.reproduce.command import imagenet

if __name__ == "__main__":
    imagenet()
