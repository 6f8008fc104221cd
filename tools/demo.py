"""``isonet-det demo``."""

from isonet_det.commands.demo import main

if __name__ == "__main__":
    main()
