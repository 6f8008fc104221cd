"""Training detectors: ``isonet-det train``, tools/train_net.py, ``python -m isonet_det.train``."""

import sys

from isonet_det.engine.command import main as engine_main
from isonet_det.engine.trainer import Trainer


def main(argv: list[str] | None = None) -> None:
    engine_main(Trainer, argv)


def evaluate() -> None:
    main(["--eval-only", *sys.argv[1:]])


if __name__ == "__main__":
    main()
