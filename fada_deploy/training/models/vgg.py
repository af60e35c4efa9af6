"""VGG-16 at output stride 8, as in DeepLab and FADA: fc6 and fc7 are dilated convolutions.

Layers are numbered like torchvision's `features` without its last two pools, so its layers 24, 26
and 28 are 23, 25 and 27 here.
"""

from __future__ import annotations

from torch import nn

from fada_deploy.training.models.blocks import Norm

# (output channels, dilation) of each 3×3 convolution, None for a max pool. The last two
# convolutions are fc6 and fc7.
_LAYOUT = (
    (64, 1), (64, 1), None,
    (128, 1), (128, 1), None,
    (256, 1), (256, 1), (256, 1), None,
    (512, 1), (512, 1), (512, 1),
    (512, 2), (512, 2), (512, 2),
    (1024, 4), (1024, 4),
)  # fmt: skip

# Parameter prefixes of torchvision that differ here, and the prefixes without ImageNet weights: fc6
# and fc7.
RENAMES = {"24.": "23.", "26.": "25.", "28.": "27."}
NOT_PRETRAINED = ("29.", "31.")


class VGG16(nn.Sequential):
    """Map normalized RGB (B, 3, H, W) to features (B, 1024, H/8, W/8)."""

    out_channels = 1024

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        inner = 3
        for layer in _LAYOUT:
            if layer is None:
                layers.append(nn.MaxPool2d(2))
                continue
            outer, dilation = layer
            conv = nn.Conv2d(inner, outer, 3, padding=dilation, dilation=dilation)
            if outer < self.out_channels:
                # Without normalization layers, activations would vanish under PyTorch's default
                # initialization. Only fc6 and fc7 keep the default, as published.
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                assert conv.bias is not None
                nn.init.zeros_(conv.bias)
            layers += [conv, nn.ReLU(inplace=True)]
            inner = outer
        super().__init__(*layers)


def vgg16(norm: Norm) -> VGG16:
    """Return VGG-16: 28.9 M parameters. It has no normalization layers, so `norm` is unused."""
    del norm
    return VGG16()
