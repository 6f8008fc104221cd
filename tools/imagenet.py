"""``isonet-det imagenet``."""

from isonet_det.reproduce.command import imagenet

if __name__ == "__main__":
    imagenet()
