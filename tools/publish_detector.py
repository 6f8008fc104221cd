"""``isonet-det publish``."""

from isonet_det.commands.publish import main

if __name__ == "__main__":
    main()
