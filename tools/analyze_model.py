"""``isonet-det flops``."""

from isonet_det.commands.flops import main

if __name__ == "__main__":
    main()
