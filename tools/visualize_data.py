"""``isonet-det look``."""

from isonet_det.commands.look import main

if __name__ == "__main__":
    main()
