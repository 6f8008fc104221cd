"""What the authors' network computes in float64, with weights that anyone can make again."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..modeling.isonet import ISONet, ISONetOptions
from ..weights.loader import load_backbone

# A map of the record, and what it is called here.
MAPS = {"stem": "stem", "s1": "res2", "s2": "res3", "s3": "res4", "s4": "res5", "logits": "linear"}


def official_records() -> dict[str, Any]:
    """The recorded maps, logits, penalties and gradients, by the network's name."""
    return json.loads((Path(__file__).parent / "official_isonet.json").read_text())


def official_weight(name: str, shape: list[int]) -> Tensor:
    """The reference weight of one parameter, float64, by the authors' name."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).randn(*shape)
    if name.endswith("srelu_bias"):
        noise = -0.5 + 0.3 * noise
    elif name.endswith("scale"):
        noise = 0.5 + 0.1 * noise
    elif name.endswith("fc.bias"):
        noise = 0.1 * noise
    else:
        noise = noise / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(noise)


def official_image() -> Tensor:
    """The input of the records, (2, 3, 96, 64), float64."""
    return torch.from_numpy(np.random.RandomState(3).randn(2, 3, 96, 64))


def official_network(name: str, **extra: Any) -> ISONet:
    """A recorded network in float64, with its classifier and all of its maps.

    Args:
        name: such as "R-ISONet-18".
        extra: further arguments of :class:`isonet_det.ISONet`.
    """
    net = ISONet(
        int(name.rsplit("-", 1)[1]),
        ISONetOptions(residual=name.startswith("R-")),
        num_classes=1000,
        out_features=list(MAPS.values()),
        **extra,
    ).double()
    parameters = official_records()[name]["params"]
    load_backbone(net, {f"module.{n}": official_weight(n, shape) for n, shape in parameters})
    return net


def map_error(record: dict[str, Any], maps: dict[str, Tensor]) -> float:
    """Largest distance of the recorded values of a map from computed ones, relative to the map's
    recorded values."""
    errors = []
    for theirs, ours in MAPS.items():
        expected = torch.tensor(record[theirs]["val"], dtype=torch.float64)
        values = maps[ours].double().cpu().flatten()[record[theirs]["idx"]]
        errors.append(((values - expected).norm() / expected.norm()).item())
    return max(errors)
