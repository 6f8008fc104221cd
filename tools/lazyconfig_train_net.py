#!/usr/bin/env python3
"""Train or evaluate from a lazy config; Detectron2's arguments, and key=value overrides."""

from isonet_det.engine.lazy import main

if __name__ == "__main__":
    main()
