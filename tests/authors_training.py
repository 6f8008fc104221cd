#!/usr/bin/env python3
"""Three training steps of R-ISONet-18 written out from the paper in the authors' names, with none
of the package's networks: ``python tests/authors_training.py`` makes authors_training.json anew.

The weights and the input are those of tests/official_isonet.json, whose logits and
penalty this reproduces (engine/test_pretrain.py), so the first step starts where the authors'
network stands.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from records import official_image, official_records, official_weight

FILE = Path(__file__).with_suffix(".json")
LABELS = (3, 700)
RATE, DECAY, MOMENTUM, GAMMA = 0.005, 1e-4, 0.9, 1e-4
SAMPLES = 5


def srelu(x, b):
    return F.relu(x - b) + b


def network(p, x):
    """Logits; ``p`` holds the parameters by the authors' names."""
    x = srelu(F.conv2d(x, p["stem.conv.weight"], stride=2, padding=3), p["stem.relu.srelu_bias"])
    x = F.max_pool2d(x, 3, 2, 1)
    for stage in range(1, 5):
        for block in (1, 2):
            name = f"s{stage}.b{block}"
            stride = 2 if stage > 1 and block == 1 else 1
            shortcut = x
            if f"{name}.proj.weight" in p:
                shortcut = F.conv2d(x, p[f"{name}.proj.weight"], stride=stride)
            y = F.conv2d(x, p[f"{name}.f.a.weight"], stride=stride, padding=1)
            y = srelu(y, p[f"{name}.f.a_relu.srelu_bias"])
            y = F.conv2d(y, p[f"{name}.f.b.weight"], padding=1)
            y = shortcut + y * p[f"{name}.f.shared_scalar.scale"]
            x = srelu(y, p[f"{name}.relu.srelu_bias"])
    return F.linear(x.mean((2, 3)), p["head.fc.weight"], p["head.fc.bias"])


def penalty(p):
    """The sum of 1/2 ||Conv(W, W) - delta||^2 over every convolution but the stem's."""
    total = 0
    for name, w in p.items():
        if w.dim() != 4 or name.startswith("stem.") or not name.endswith("weight"):
            continue
        strided = name.endswith(("b1.f.a.weight", "proj.weight")) and not name.startswith("s1")
        if w.shape[1] < w.shape[0]:
            w = w.transpose(0, 1)
        gram = F.conv2d(w, w, stride=2 if strided else 1, padding=w.shape[2] - 1)
        delta = torch.zeros_like(gram)
        delta[:, :, gram.shape[2] // 2, gram.shape[3] // 2] = torch.eye(len(w))
        total = total + (gram - delta).square().sum() / 2
    return total


def sampled(tensor):
    values = tensor.detach().flatten()
    indices = np.random.RandomState(len(values)).randint(0, len(values), SAMPLES)
    return [values.norm().item(), values.mean().item(), *values[indices].tolist()]


def three_steps(record):
    p = {n: official_weight(n, shape).requires_grad_() for n, shape in record["params"]}
    groups = {"srelu": [], "shared": [], "other": []}
    for name, tensor in p.items():
        kind = "srelu" if "srelu" in name else "shared" if "shared" in name else "other"
        groups[kind].append(tensor)
    settings = [
        {"params": groups["srelu"], "weight_decay": 0.0},
        {"params": groups["other"], "weight_decay": DECAY},
        {"params": groups["shared"], "weight_decay": DECAY, "lr": RATE / 10},
    ]
    optimizer = torch.optim.SGD(settings, lr=RATE, momentum=MOMENTUM)
    steps = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(p, official_image()), torch.tensor(LABELS))
        ortho = penalty(p)
        (loss + GAMMA * ortho).backward()
        optimizer.step()
        steps.append({"loss": loss.item(), "penalty": ortho.item()})
    return {"steps": steps, "weights": {name: sampled(tensor) for name, tensor in p.items()}}


if __name__ == "__main__":
    result = three_steps(official_records()["R-ISONet-18"])
    FILE.write_text(json.dumps(result, indent=0) + "\n")
