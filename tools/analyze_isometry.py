"""``isonet-det isometry``."""

from isonet_det.commands.isometry import main

if __name__ == "__main__":
    main()
