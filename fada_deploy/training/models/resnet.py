"""ResNet-101 at output stride 8, as torchvision's `replace_stride_with_dilation=[False, True, True]`."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fada_deploy.training.models.blocks import Bottleneck, Norm


class ResNet(nn.Module):
    """(B, 3, H, W) normalised RGB → (B, 2048, H/8, W/8)."""

    out_channels = 2048

    def __init__(self, layers: tuple[int, int, int, int], norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = norm(64)
        self.layer1 = _layer(64, 64, layers[0], norm)
        self.layer2 = _layer(256, 128, layers[1], norm, stride=2)
        # A dilated layer's first block keeps the dilation before it: it stands where the stride stood.
        self.layer3 = _layer(512, 256, layers[2], norm, dilations=(1, 2))
        self.layer4 = _layer(1024, 512, layers[3], norm, dilations=(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(x, 3, 2, padding=1)
        features: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return features


def _layer(
    inner: int, planes: int, blocks: int, norm: Norm, *, stride: int = 1, dilations: tuple[int, int] = (1, 1)
) -> nn.Sequential:
    first, rest = dilations
    layer = [Bottleneck(inner, planes, norm, stride=stride, dilation=first)]
    layer += [Bottleneck(planes * 4, planes, norm, dilation=rest) for _ in range(blocks - 1)]
    return nn.Sequential(*layer)


def resnet101(norm: Norm) -> ResNet:
    """Return the backbone of DeepLab-v2 as FADA uses it."""
    return ResNet((3, 4, 23, 3), norm)
