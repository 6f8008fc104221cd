"""Pre-training on ImageNet: ``isonet-det pretrain``, ``python -m isonet_det.pretrain``."""

from isonet_det.engine.command import main as engine_main
from isonet_det.engine.pretrainer import PretrainTrainer


def main(argv: list[str] | None = None) -> None:
    engine_main(PretrainTrainer, argv, False)


if __name__ == "__main__":
    main()
