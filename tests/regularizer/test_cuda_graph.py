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
    weights = [c.weight for c in convs]

    def evaluate():
        total = penalty.total_orthogonality([(w, (1, 1), 1) for w in weights])
        (2 * total).backward()
        gradients = [w.grad if w.grad is None else w.grad.clone() for w in weights]
        for weight in weights:
            weight.grad = None
        return total, gradients

    for _ in range(3):
        total, expected = evaluate()
        with monkeypatch.context() as patch:
            patch.setattr(penalty, "_evaluate", graphed)
            again, gradients = evaluate()
        assert torch.equal(total, again)
        for weight, found, gradient in zip(weights, gradients, expected, strict=True):
            if gradient is None:
                assert found is None
            else:
                assert torch.equal(found, gradient)
                weight.data.sub_(gradient, alpha=0.01)
    assert len(recordings) == 1
