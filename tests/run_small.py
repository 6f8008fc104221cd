"""What stands for ``python`` in the commands of the pages: the same command on data and for a time
that a test has. Only what needs hardware, data or hours is changed."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
TRAIN = [
    "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)", "SOLVER.IMS_PER_BATCH", "2",
    "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0",
    "TEST.EVAL_PERIOD", "0", "TEST.EXPECTED_RESULTS", "[]", "TEST.DETECTIONS_PER_IMAGE", "5",
    # After two iterations no detection would have 0.05.
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0",
]  # fmt: skip
PRETRAIN = [
    "PRETRAIN.NUM_CLASSES", "2", "SOLVER.IMS_PER_BATCH", "4", "PRETRAIN.TRAIN_CROP", "32",
    "PRETRAIN.VAL_RESIZE", "36", "PRETRAIN.VAL_CROP", "32", "SOLVER.MAX_ITER", "2",
    "DATALOADER.NUM_WORKERS", "0", "MODEL.ISONET.ORTHO_COEFF", "0.0",
]  # fmt: skip

TOOLS = {"train": "train_net", "find-lr": "find_lr", "publish": "publish_detector"}


def small(words: list[str]) -> list[str]:
    tool = Path(words[0]).stem
    words = [
        w.replace("/data", f"{os.getcwd()}/data") if w.startswith("/data") else w for w in words
    ]
    if "--num-gpus" in words:
        words[words.index("--num-gpus") + 1] = "1"
    if tool == "train_net":
        return [*words, *TRAIN]
    if tool == "pretrain":
        return [*words, *PRETRAIN]
    if tool == "find_lr":
        return [*words, "--iterations", "2", *TRAIN]
    if tool == "export":
        options = ["INPUT.MIN_SIZE_TEST", "128", *TRAIN[-4:]]
        return [*words[:3], *options, *words[3:]]  # before --photos
    if tool == "publish_detector":
        return [*words, "--zoo", "zoo"]
    if tool in ("table6", "imagenet", "cells") and words[1] == "run":
        if "--rows" in words:
            del words[words.index("--rows") + 2]  # one of them
        else:
            words += ["--rows", "risonet34_dc5"]
        opts = [] if "--opts" in words else ["--opts"]
        return [*words, *opts, *(PRETRAIN if tool == "imagenet" else TRAIN)]
    return words


if __name__ == "__main__":
    arguments, folder = sys.argv[1:], None
    if arguments[:2] == ["-m", "pytest"]:
        arguments, folder = [*arguments, "--collect-only", "-q"], str(REPOSITORY)
    elif arguments[0] == "isonet-det":
        tool = TOOLS.get(arguments[1], arguments[1])
        arguments = ["-m", "isonet_det", arguments[1], *small([tool, *arguments[2:]])[1:]]
    elif arguments[0] not in ("-m", "-c"):
        arguments = small(arguments)
    sys.exit(subprocess.call([sys.executable, "-W", "ignore", *arguments], cwd=folder))
