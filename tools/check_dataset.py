"""``isonet-det check``."""

from isonet_det.commands.check import main

if __name__ == "__main__":
    main()
