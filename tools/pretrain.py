#!/usr/bin/env python3
"""``isonet-det pretrain``."""

from isonet_det.pretrain import main

if __name__ == "__main__":
    main()
