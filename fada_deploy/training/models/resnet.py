"""ResNets with torchvision's parameter names, at output stride 8: two strides become dilations."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fada_deploy.training.models.blocks import BasicBlock, Bottleneck, Norm, normalized


class ResNet(nn.Module):
    """Map normalized RGB (B, 3, H, W) to features (B, 512 · expansion, H/8, W/8)."""

    def __init__(
        self, block: type[BasicBlock | Bottleneck], layers: tuple[int, int, int, int], norm: Norm
    ) -> None:
        super().__init__()
        expansion = block.expansion
        self.out_channels = 512 * expansion
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = norm(64)
        self.layer1 = _layer(block, 64, 64, layers[0], norm)
        self.layer2 = _layer(block, 64 * expansion, 128, layers[1], norm, stride=2)
        # The convolution that had the stride keeps the previous dilation; all later ones double it.
        # Every fourth feature is then exactly that of the strided network trained on ImageNet.
        self.layer3 = _layer(block, 128 * expansion, 256, layers[2], norm, dilations=(1, 2))
        self.layer4 = _layer(block, 256 * expansion, 512, layers[3], norm, dilations=(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, `out_channels`, H/8, W/8)."""
        x = F.relu(normalized(self.conv1, self.bn1, x))
        x = F.max_pool2d(x, 3, 2, padding=1)
        features: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return features


def _layer(
    block: type[BasicBlock | Bottleneck],
    inner: int,
    planes: int,
    blocks: int,
    norm: Norm,
    *,
    stride: int = 1,
    dilations: tuple[int, int] = (1, 1),
) -> nn.Sequential:
    layer = [block(inner, planes, norm, stride=stride, dilations=dilations)]
    rest = (dilations[1], dilations[1])
    layer += [
        block(planes * block.expansion, planes, norm, dilations=rest) for _ in range(blocks - 1)
    ]
    return nn.Sequential(*layer)


def resnet18(norm: Norm) -> ResNet:
    """Return ResNet-18: 512 output channels, 11.2 M parameters."""
    return ResNet(BasicBlock, (2, 2, 2, 2), norm)


def resnet50(norm: Norm) -> ResNet:
    """Return ResNet-50: 2048 output channels, 23.5 M parameters."""
    return ResNet(Bottleneck, (3, 4, 6, 3), norm)


def resnet101(norm: Norm) -> ResNet:
    """Return ResNet-101, FADA's DeepLab-v2 backbone: 2048 output channels, 42.5 M parameters."""
    return ResNet(Bottleneck, (3, 4, 23, 3), norm)
