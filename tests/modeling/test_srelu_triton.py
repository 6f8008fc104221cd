"""The kernel, run by Triton's interpreter in a process of its own (it is chosen at import)."""

import sys

import pytest
import torch

SHAPES = [(2, 33, 7, 6), (1, 3, 70, 60), (3, 130, 2, 2), (2, 3, 1, 1), (2, 200, 3, 1)]


def formula(y, bias, grad):
    to_bias = y <= bias
    return grad.double() * ~to_bias, (grad.double() * to_bias).sum((0, 2, 3), keepdim=True)


def check(dtype, memory_format):
    from isonet_det.modeling.srelu_triton import srelu_backward

    torch.manual_seed(0)
    for shape in SHAPES:
        bias = torch.randn(1, shape[1], 1, 1).to(dtype)
        y = torch.maximum(torch.randn(shape).to(dtype), bias).contiguous(
            memory_format=memory_format
        )
        grad = torch.randn(shape).to(dtype)
        for given in (grad, grad.contiguous(memory_format=torch.channels_last)):
            grad_x, grad_bias = srelu_backward(given, y, bias, torch.float32)
            expected_x, expected_bias = formula(y, bias, grad)
            assert torch.equal(grad_x.double(), expected_x)
            assert grad_x.stride() == y.stride() and grad_bias.dtype == torch.float32
            torch.testing.assert_close(grad_bias.double(), expected_bias, rtol=1e-5, atol=1e-5)
            assert torch.equal(srelu_backward(given, y, bias, None)[0], grad_x)
    y[0, 0, 0, 0] = float("nan")
    assert srelu_backward(grad, y, bias, None)[0][0, 0, 0, 0] == grad[0, 0, 0, 0]
    empty = torch.empty(0, 3, 4, 4, dtype=dtype)
    assert not srelu_backward(empty, empty, bias[:, :3], torch.float32)[1].any()


def test_the_kernel_has_the_formulas_gradients():
    from support import run_command

    pytest.importorskip("triton")
    done = run_command(__file__, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    for one_dtype in (torch.float32, torch.float16, torch.bfloat16):
        for one_format in (torch.contiguous_format, torch.channels_last):
            check(one_dtype, one_format)
    sys.exit(0)
