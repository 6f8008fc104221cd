#!/usr/bin/env python3
"""``isonet-det publish``."""

from isonet_det.commands.publish import main

if __name__ == "__main__":
    main()
