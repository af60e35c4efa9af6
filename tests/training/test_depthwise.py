"""The gradients of the depthwise convolution against those of torch's grouped convolution."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fada_deploy.training.models.depthwise import DepthwiseConvolution, depthwise_conv2d


@pytest.mark.parametrize("size_hw", [(8, 10), (9, 12), (7, 7)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (5, 1, 2), (3, 2, 0), (5, 2, 2)]
)
def test_gradients_equal_those_of_conv2d(
    size_hw: tuple[int, int], kernel: int, stride: int, padding: int
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, *size_hw, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 1, kernel, kernel, dtype=torch.float64, requires_grad=True)
    expected = F.conv2d(x, weight, None, stride, padding, groups=6)
    got = DepthwiseConvolution.apply(x, weight, stride, padding)
    torch.testing.assert_close(got, expected)
    gradient = torch.randn_like(expected)
    for actual, want in zip(
        torch.autograd.grad(got, (x, weight), gradient),
        torch.autograd.grad(expected, (x, weight), gradient),
        strict=True,
    ):
        torch.testing.assert_close(actual, want)


def test_bfloat16_gradients_are_as_close_to_float64_as_those_of_torch() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 16, 21, 33), torch.randn(16, 1, 5, 5)

    def gradients(function: object, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [t.to(dtype).requires_grad_() for t in (x, weight)]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            y = function(*leaves)  # type: ignore[operator]
        return list(torch.autograd.grad(y.double().square().sum(), leaves))

    def plain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, weight, None, 2, 0, groups=16)

    def own(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return depthwise_conv2d(x, weight, stride=2, padding=0)

    exact = gradients(plain, torch.float64)
    for truth, of_torch, got in zip(
        exact, gradients(plain, torch.float32), gradients(own, torch.float32), strict=True
    ):
        assert got.dtype == torch.float32
        error, tolerance = ((g - truth).norm() / truth.norm() for g in (got, of_torch))
        assert error <= 1.1 * tolerance < 0.02
