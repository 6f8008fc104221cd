"""``python -m isonet_det.train`` and the console script ``isonet-det-train``."""

import warnings

# Detectron2 calls functions that PyTorch has deprecated, once per import.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch")

from .engine import main  # noqa: E402

if __name__ == "__main__":
    main()
