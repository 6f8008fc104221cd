"""Training: ``python -m isonet_det.train``, and tools/train_net.py."""

from isonet_det.engine.command import main as engine_main
from isonet_det.engine.trainer import Trainer


def main(argv: list[str] | None = None) -> None:
    """The command line; under torchrun too."""
    engine_main(Trainer, argv)


if __name__ == "__main__":
    main()
