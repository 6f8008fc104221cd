"""``isonet-det table6``."""

from isonet_det.reproduce.command import table6

if __name__ == "__main__":
    table6()
