"""``python -m isonet_det.train`` and the console script ``isonet-det-train``."""

from .engine.prepare import main

if __name__ == "__main__":
    main()
