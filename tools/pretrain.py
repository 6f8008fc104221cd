#!/usr/bin/env python3
"""Train an ImageNet classifier, or evaluate one (--eval-only); Detectron2's own arguments."""

from isonet_det.pretrain import main

if __name__ == "__main__":
    main()
