"""What is recorded and replayed; on the CPU a recording is a call that fills its outputs."""

import torch
from torch import nn

from isonet_det.regularizer import penalty
from isonet_det.regularizer.cuda_graph import GraphedFunction


def test_the_penalty_and_its_gradient_are_the_same_when_replayed(monkeypatch):
    recordings = []

    def record(compute, device):
        outputs = compute()
        recordings.append(outputs)

        def replay():
            for output, value in zip(outputs, compute(), strict=True):
                output.copy_(value)

        return replay, outputs

    graphed = GraphedFunction(penalty._evaluate, record=record)
    convs = [nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3)]
    convs[1].weight.requires_grad_(False)
    weights = [(c.weight, (1, 1), 1) for c in convs]
    for _ in range(3):
        total = penalty.total_orthogonality(weights)
        (2 * total).backward()
        expected = [None if c.weight.grad is None else c.weight.grad.clone() for c in convs]
        for conv in convs:
            conv.weight.grad = None
        with monkeypatch.context() as patch:
            patch.setattr(penalty, "_evaluate", graphed)
            again = penalty.total_orthogonality(weights)
            (2 * again).backward()
        assert torch.equal(total, again)
        for conv, gradient in zip(convs, expected, strict=True):
            assert (conv.weight.grad is None) == (gradient is None)
            if gradient is not None:
                assert torch.equal(conv.weight.grad, gradient)
                conv.weight.data.sub_(conv.weight.grad, alpha=0.01)
            conv.weight.grad = None
    assert len(recordings) == 1
