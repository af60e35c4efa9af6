"""DDRNet-23-slim (Hong et al., 2021): a branch at 1/8 and a branch down to 1/64, fused at 1/8.

Widths and parameter names are the published ones, so that the published ImageNet weights load.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fada_deploy.training.models.blocks import Bottleneck, Norm, basic_layer, conv3x3, resize_to
from fada_deploy.training.models.pyramids import DAPPM


class DDRNet(nn.Module):
    """Map normalized RGB (B, 3, H, W) to features (B, 128, H/8, W/8); H and W divisible by 8."""

    out_channels = 128

    def __init__(self, norm: Norm, planes: int = 32) -> None:
        super().__init__()
        high = planes * 2
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, planes, 3, 2, padding=1), norm(planes), nn.ReLU(),
            nn.Conv2d(planes, planes, 3, 2, padding=1), norm(planes), nn.ReLU(),
        )  # fmt: skip
        self.layer1 = basic_layer(planes, planes, norm)
        self.layer2 = basic_layer(planes, planes * 2, norm, stride=2)
        self.layer3 = basic_layer(planes * 2, planes * 4, norm, stride=2)
        self.layer4 = basic_layer(planes * 4, planes * 8, norm, stride=2)
        self.layer5 = nn.Sequential(
            Bottleneck(planes * 8, planes * 8, norm, stride=2, final_relu=False, expansion=2)
        )
        self.compression3 = nn.Sequential(nn.Conv2d(planes * 4, high, 1, bias=False), norm(high))
        self.compression4 = nn.Sequential(nn.Conv2d(planes * 8, high, 1, bias=False), norm(high))
        self.down3 = nn.Sequential(conv3x3(high, planes * 4, stride=2), norm(planes * 4))
        self.down4 = nn.Sequential(
            conv3x3(high, planes * 4, stride=2), norm(planes * 4), nn.ReLU(),
            conv3x3(planes * 4, planes * 8, stride=2), norm(planes * 8),
        )  # fmt: skip
        self.layer3_ = basic_layer(planes * 2, high, norm)
        self.layer4_ = basic_layer(high, high, norm)
        self.layer5_ = nn.Sequential(Bottleneck(high, high, norm, final_relu=False, expansion=2))
        self.spp = DAPPM(planes * 16, planes * 4, planes * 4, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, 128, H/8, W/8)."""
        eighth = self.layer2(F.relu(self.layer1(self.conv1(x))))
        low = self.layer3(F.relu(eighth))
        high = self.layer3_(F.relu(eighth))
        low, high = (
            low + self.down3(F.relu(high)),
            high + resize_to(self.compression3(F.relu(low)), high),
        )
        low = self.layer4(F.relu(low))
        high = self.layer4_(F.relu(high))
        low, high = (
            low + self.down4(F.relu(high)),
            high + resize_to(self.compression4(F.relu(low)), high),
        )
        high = self.layer5_(F.relu(high))
        context = self.spp(self.layer5(F.relu(low)))
        fused: Tensor = high + resize_to(context, high)
        return fused


def ddrnet23_slim(norm: Norm) -> DDRNet:
    """Return DDRNet-23-slim: 5.7 M parameters including its segmentation head."""
    return DDRNet(norm)
