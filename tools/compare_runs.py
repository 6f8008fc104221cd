"""``isonet-det compare``."""

from isonet_det.commands.compare import main

if __name__ == "__main__":
    main()
