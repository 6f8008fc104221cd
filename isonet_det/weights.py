"""MODEL.WEIGHTS: from an address to a filled detector."""

import logging

from torch import nn

from .checkpoint import load_backbone, parse_checkpoint, read_file
from .errors import IsonetError


def resolve_weights(address: str) -> str:
    return address


def load_weights(model: nn.Module, address: str, whole: bool = False) -> None:
    if not address:
        return
    load_backbone(model, address)
