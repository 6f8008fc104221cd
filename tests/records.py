"""What the authors' network computes in float64, with weights that anyone can make again."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

from isonet_det import ISONet, ISONetOptions, load_backbone

# A map of the record, and what it is called here.
MAPS = {"stem": "stem", "s1": "res2", "s2": "res3", "s3": "res4", "s4": "res5", "logits": "linear"}


def official_records():
    return json.loads((Path(__file__).parent / "official_isonet.json").read_text())


def official_weight(name, shape, scale=0.5):
    noise = np.random.RandomState(zlib.crc32(name.encode())).randn(*shape)
    if name.endswith("srelu_bias"):
        noise = -0.5 + 0.3 * noise
    elif name.endswith("scale"):
        noise = scale + 0.1 * noise
    elif "bias" in name.rsplit(".", 1)[-1]:
        noise = 0.1 * noise
    else:
        noise = noise / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(noise)


def fixup_records():
    """The same of Fixup's authors' code, and three of their training steps at a rate of 0.005,
    without mixup and with alpha 0.7, drawn as a run of seed 5 draws: losses, then per parameter the
    norm and the middle value."""
    return json.loads((Path(__file__).parent / "official_fixup.json").read_text())


def fixup_state(name):
    """The weights of a Fixup record, float64, by its authors' names."""
    return {key: official_weight(key, shape, 1) for key, shape in fixup_records()[name]["params"]}


def official_image():
    """The input of the records, (2, 3, 96, 64), float64."""
    return torch.from_numpy(np.random.RandomState(3).randn(2, 3, 96, 64))


def official_network(name):
    """A recorded network, such as "R-ISONet-18", in float64, with its classifier and all maps."""
    net = ISONet(
        int(name.rsplit("-", 1)[1]),
        ISONetOptions(residual=name.startswith("R-")),
        num_classes=1000,
        out_features=list(MAPS.values()),
    ).double()
    parameters = official_records()[name]["params"]
    state = {f"module.{n}": official_weight(n, shape) for n, shape in parameters}
    assert len(load_backbone(net, state)) == len(state)
    return net


def map_error(record, maps):
    """Largest distance of the recorded values of a map from computed ones, relative to the map's
    recorded values."""
    errors = []
    for theirs, ours in MAPS.items():
        expected = torch.tensor(record[theirs]["val"], dtype=torch.float64)
        values = maps[ours].double().cpu().flatten()[record[theirs]["idx"]]
        errors.append(((values - expected).norm() / expected.norm()).item())
    return max(errors)
