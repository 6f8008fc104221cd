"""``isonet-det pretrain``."""

from isonet_det.pretrain import main

if __name__ == "__main__":
    main()
