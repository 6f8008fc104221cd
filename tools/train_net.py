"""``isonet-det train``, and with --eval-only ``isonet-det evaluate``."""

from isonet_det.train import main

if __name__ == "__main__":
    main()
