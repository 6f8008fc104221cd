"""``isonet-det find-lr``."""

from isonet_det.commands.find_lr import main

if __name__ == "__main__":
    main()
