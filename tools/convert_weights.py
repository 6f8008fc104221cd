"""``isonet-det convert``."""

from isonet_det.commands.convert import main

if __name__ == "__main__":
    main()
