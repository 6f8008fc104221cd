"""``isonet-det train-lazy``."""

from isonet_det.engine.lazy import main

if __name__ == "__main__":
    main()
