"""Segmentation heads: features to logits at the same resolution."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fada_deploy.training.models.blocks import Norm, conv3x3


class ASPPClassifier(nn.Module):
    """The head of DeepLab-v2: the sum of four 3×3 convolutions with dilations 6, 12, 18 and 24."""

    def __init__(self, channels: int, num_classes: int, norm: Norm) -> None:
        super().__init__()
        convs = [
            nn.Conv2d(channels, num_classes, 3, padding=rate, dilation=rate)
            for rate in (6, 12, 18, 24)
        ]
        for conv in convs:
            nn.init.normal_(conv.weight, 0.0, 0.01)
        self.conv2d_list = nn.ModuleList(convs)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, h, w) to logits (B, K, h, w)."""
        a, b, c, d = (conv(features) for conv in self.conv2d_list)
        logits: Tensor = a + b + c + d
        return logits


class SegmentHead(nn.Module):
    """The head of DDRNet and PIDNet: BN-ReLU-3×3 to `hidden` channels, then BN-ReLU-1×1 to K."""

    def __init__(self, channels: int, num_classes: int, norm: Norm, *, hidden: int = 64) -> None:
        super().__init__()
        self.bn1 = norm(channels)
        self.conv1 = conv3x3(channels, hidden)
        self.bn2 = norm(hidden)
        self.conv2 = nn.Conv2d(hidden, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, h, w) to logits (B, K, h, w)."""
        hidden = self.conv1(F.relu(self.bn1(features)))
        logits: Tensor = self.conv2(F.relu(self.bn2(hidden)))
        return logits


class PointClassifier(nn.Module):
    """The head of SegFormer: one 1×1 convolution. Takes `norm` only for the common signature."""

    def __init__(self, channels: int, num_classes: int, norm: Norm) -> None:
        super().__init__()
        del norm
        self.linear_pred = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, h, w) to logits (B, K, h, w)."""
        logits: Tensor = self.linear_pred(features)
        return logits
