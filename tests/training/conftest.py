"""A backbone of two convolutions, `tiny`, for tests of what surrounds the networks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch import Tensor, nn

from fada_deploy.training.models.blocks import Norm, conv3x3
from fada_deploy.training.models.deeplab import SegmentHead
from fada_deploy.training.models.segmentation import BACKBONES, Architecture


class TinyBackbone(nn.Module):
    """Map normalized RGB (B, 3, H, W) to features (B, 16, H/8, W/8)."""

    out_channels = 16

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 4, 4), norm(12), nn.ReLU())
        self.layer = nn.Sequential(conv3x3(12, self.out_channels, stride=2), norm(16), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layer(self.stem(x))
        return features


@pytest.fixture(scope="module", autouse=True)
def tiny_backbone() -> Iterator[None]:
    """Register `tiny` in this process; processes that a test starts do not know it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", Architecture(TinyBackbone, SegmentHead, auxiliary="stem"))
        yield
