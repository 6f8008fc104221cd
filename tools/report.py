"""``isonet-det report``."""

from isonet_det.commands.report import main

if __name__ == "__main__":
    main()
