"""``isonet-det export``."""

from isonet_det.commands.export import main

if __name__ == "__main__":
    main()
