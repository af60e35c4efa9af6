"""The input normalizations of published weights."""

from __future__ import annotations

from typing import NamedTuple

from fada_deploy.training.models.segmentation import IMAGENET_MEAN, IMAGENET_STD

Triple = tuple[float, float, float]


class InputNormalization(NamedTuple):
    """The input that pretrained weights expect: (x − mean) / std.

    `mean` and `std` are in RGB order, for values in 0…1. `bgr` is true if the first convolution of
    the weights file reads BGR.
    """

    mean: Triple
    std: Triple
    bgr: bool


INPUT_NORMALIZATIONS = {
    "torchvision": InputNormalization(IMAGENET_MEAN, IMAGENET_STD, bgr=False),
    # BGR in 0…255 minus (103.939, 116.779, 123.68), not divided. Given here in RGB order, because
    # the networks of this package read RGB.
    "caffe": InputNormalization(
        (123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255, 1 / 255, 1 / 255), bgr=True
    ),
    # RGB in 0…255, (x − 127) / 128.
    "efficientnet-lite": InputNormalization(
        (127 / 255, 127 / 255, 127 / 255), (128 / 255, 128 / 255, 128 / 255), bgr=False
    ),
}
