"""``isonet-det COMMAND ...`` and ``python -m isonet_det COMMAND ...``: one way to every command."""

import argparse
import importlib
import sys

# What runs a command, and what it does.
COMMANDS = {
    "check": ("commands.check:main", "look over data sets: every photo, every annotation"),
    "split": ("commands.split:main", "split a COCO json by photos, to train and to evaluate"),
    "look": ("commands.look:main", "draw what training is fed, after augmentation"),
    "find-lr": ("commands.find_lr:main", "find a learning rate"),
    "train": ("train:main", "train a detector"),
    "evaluate": ("train:evaluate", "evaluate a trained detector"),
    "report": ("commands.report:main", "write a page of what a detector gets wrong"),
    "demo": ("commands.demo:main", "detect on photos, a video or a webcam"),
    "export": ("commands.export:main", "write ONNX, TorchScript or torch.export files"),
    "publish": ("commands.publish:main", "publish the detector of a finished run"),
    "compare": ("commands.compare:main", "draw the curves of several runs in one picture"),
    "isometry": ("commands.isometry:main", "say how isometric the convolutions of weights are"),
    "flops": ("commands.flops:main", "count parameters, FLOPs and activations of a config"),
    "convert": ("commands.convert:main", "convert a weight file, or say what one is"),
    "pretrain": ("pretrain:main", "train or evaluate an ImageNet classifier"),
    "train-lazy": ("engine.lazy:main", "train or evaluate from one of Detectron2's lazy configs"),
    "table6": ("reproduce.command:table6", "plan, run and report on the paper's Table 6"),
    "imagenet": ("reproduce.command:imagenet", "the same for the paper's ImageNet tables"),
    "cells": ("reproduce.command:cells", "the same for networks on blood cells, docs/bccd.md"),
    "completion": ("__main__:completion", "print what completes commands in bash"),
}


def completion() -> None:
    """Print the line that completes commands and files in bash: eval "$(isonet-det completion)"."""
    print(f'complete -o default -W "{" ".join(COMMANDS)}" isonet-det')


def main() -> None:
    lines = [f"  {name:<11} {what}" for name, (_, what) in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="isonet-det",
        description="\n".join(["R-ISONet detectors.", "", "commands:", *lines]),
        epilog="isonet-det COMMAND --help says more, with an example.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="one of those above")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="its own arguments")
    args = parser.parse_args(sys.argv[1:] or ["--help"])
    module, _, function = COMMANDS[args.command][0].partition(":")
    sys.argv = [f"isonet-det {args.command}", *args.words]
    getattr(importlib.import_module(f"isonet_det.{module}"), function)()


if __name__ == "__main__":
    main()
