"""What is recorded and replayed; on the CPU a recording is a call that fills its outputs."""

import logging

import pytest
import torch
from torch import nn

from isonet_det.regularizer import penalty
from isonet_det.regularizer.cuda_graph import GraphedFunction


class Counted:
    """A function of tensors that counts its calls, and a recorder of it for the CPU."""

    def __init__(self):
        self.calls = self.recordings = 0

    def function(self, tensors, factor):
        self.calls += 1
        return (factor * sum(t.sum() for t in tensors), torch.cat([t.flatten() for t in tensors]))

    def record(self, compute, device):
        self.recordings += 1
        outputs = compute()
        again = self.calls

        def replay():
            for output, value in zip(outputs, compute(), strict=True):
                output.copy_(value)
            self.calls = again  # what a graph does, nobody calls

        return replay, outputs


def test_a_function_is_called_once_recorded_once_and_then_replayed():
    counted = Counted()
    graphed = GraphedFunction(counted.function, record=counted.record)
    weights = [torch.ones(2), torch.ones(3)]
    results = []
    for step in range(4):
        weights[0].fill_(step)  # in place, as an optimizer does
        results.append(graphed(weights, 2.0))
    assert (counted.calls, counted.recordings) == (2, 1)
    # Copies: an earlier result is not overwritten by a later call.
    assert [r[0].item() for r in results] == [6.0, 10.0, 14.0, 18.0]
    assert [r[1][0].item() for r in results] == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("change", ["place", "settings", "memory format"])
def test_another_place_or_setting_is_another_recording(change):
    counted = Counted()
    graphed = GraphedFunction(counted.function, record=counted.record)
    weight = torch.arange(16.0).view(1, 4, 2, 2)
    graphed([weight], 1.0)
    graphed([weight], 1.0)
    if change == "place":
        other = weight.clone()
    else:
        other = weight.permute(0, 2, 3, 1) if change == "memory format" else weight
    factor = 3.0 if change == "settings" else 1.0
    assert graphed([other], factor)[0] == factor * weight.sum()
    assert (counted.calls, counted.recordings) == (3, 1)


def test_recordings_end_with_their_weights_and_are_few():
    counted = Counted()

    def record(compute, device):  # keeps no tensor but the outputs, as a graph does
        counted.recordings += 1
        return (lambda: None), compute()

    graphed = GraphedFunction(counted.function, record=record)
    many = [torch.full((2,), float(i)) for i in range(9)]
    for _ in range(3):
        for weight in many:
            assert graphed([weight], 1.0)[0] == weight.sum()
    assert counted.recordings == 9
    del weight
    many.pop()
    assert len(graphed._recordings) == 8  # the memory of a model that is gone is given back
    for factor in (2.0, 3.0, 4.0):
        graphed([many[0]], factor)
    assert len(graphed._recordings[id(many[0])]) == 2
    graphed.clear()
    assert graphed([many[1]], 1.0)[0] == 2 and counted.recordings == 9


def test_what_cannot_be_recorded_runs_as_it_is_and_says_so_once(caplog):
    counted = Counted()

    def refuse(compute, device):
        raise RuntimeError("CUDA graphs\nare not supported")

    graphed = GraphedFunction(counted.function, record=refuse)
    weight = torch.ones(2)
    with caplog.at_level(logging.WARNING):
        assert [graphed([weight], 1.0)[0].item() for _ in range(4)] == [2.0] * 4
    assert counted.calls == 4
    (line,) = caplog.messages
    assert line == "The penalty is not recorded as a CUDA graph: CUDA graphs are not supported"


def test_the_penalty_and_its_gradient_are_the_same_when_replayed(monkeypatch):
    counted = Counted()
    graphed = GraphedFunction(penalty._evaluate, record=counted.record)
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
    assert counted.recordings == 1
