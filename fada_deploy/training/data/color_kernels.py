"""The color changes of a whole batch on its device, as PyTorch operations.

`augmentation` and `transforms` do the same for one frame on a CPU with OpenCV, which is faster
there; the tests compare both. On a GPU the loader leaves these changes to this module, so that the
cores of the host only decode, resize and crop.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fada_deploy.training.data.augmentation import LUMA, Photometry
from fada_deploy.training.data.color_change import ColorChange, change_frame
from fada_deploy.training.data.transforms import JitterStep
from fada_deploy.training.device import copy_to_device

# Tables of the JPEG standard (ITU-T T.81, annex K) for luminance and chrominance at quality 50.
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *(((99,) * 8,) * 4),
)
# JFIF: Y, Cb and Cr of red, green and blue, the chroma around 128.
_TO_YCC = np.array(
    [LUMA, [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]], np.float32
)
_TO_RGB = np.linalg.inv(_TO_YCC)


def change_batch(frames_bhwc: Tensor, changes: Sequence[ColorChange | None]) -> Tensor:
    """Return changed frames (B, H, W, 3) uint8 RGB: with OpenCV on a CPU, else on their device."""
    made = [change for change in changes if change is not None]
    if not made:
        return frames_bhwc
    if frames_bhwc.device.type != "cpu":
        return change_colors(frames_bhwc, made)
    frames = [change_frame(f, c) for f, c in zip(frames_bhwc.numpy(), made, strict=True)]
    return torch.from_numpy(np.stack(frames))


def change_colors(frames_bhwc: Tensor, changes: Sequence[ColorChange]) -> Tensor:
    """Return changed frames (B, H, W, 3) uint8 RGB.

    The result for a frame depends on its own change only. It differs from that of OpenCV by
    rounding, and in the random numbers of the noise.
    """
    x = frames_bhwc.permute(0, 3, 1, 2).float()
    photometry = [change.photometry for change in changes if change.photometry is not None]
    if photometry:
        x = apply_photometry(x, photometry, [change.noise_seed for change in changes])
    if any(change.jitter for change in changes):
        x = apply_jitter(x, [change.jitter for change in changes])
    return x.byte().permute(0, 2, 3, 1).contiguous()


def apply_photometry(
    x: Tensor, photometry: Sequence[Photometry], noise_seeds: Sequence[int]
) -> Tensor:
    """Return changed frames (B, 3, H, W), float with integer values in 0…255."""
    gray = (x.mean((2, 3)) * _to(x, LUMA)).sum(1)
    matrices = _to(x, [p.matrix for p in photometry])
    offset = _to(x, [p.contrast_offset for p in photometry]) * gray
    x = _quantized(_mixed(x, matrices) + _per_frame(offset))
    exponents = _to(x, [p.exponent for p in photometry])
    x = _quantized(255 * (x / 255) ** _per_frame(exponents))
    sigmas = [p.blur_sigma for p in photometry]
    if any(sigmas):
        x = _quantized(_blur(x, sigmas))
    stds = [p.noise_std for p in photometry]
    if any(stds):
        noise = torch.empty_like(x)
        generator = torch.Generator(x.device)
        for frame, seed in zip(noise, noise_seeds, strict=True):
            frame.normal_(generator=generator.manual_seed(seed))
        x = _quantized(x + noise * _per_frame(_to(x, stds)))
    qualities = [p.jpeg_quality for p in photometry]
    if any(qualities):
        slots = _slots(x, [bool(quality) for quality in qualities])
        x[slots] = _compress(x[slots], [q for q in qualities if q])
    return x


def apply_jitter(x: Tensor, jitter: Sequence[tuple[JitterStep, ...]]) -> Tensor:
    """Return frames (B, 3, H, W) with changed colors, float with integer values in 0…255."""
    luma = _to(x, LUMA)[:, None, None]
    for steps in zip(*jitter, strict=True):
        kinds = [kind for kind, _ in steps]
        # Brightness, contrast and saturation blend with black, the mean gray and the gray frame.
        factors = _per_frame(_to(x, [1.0 if kind == "hue" else value for kind, value in steps]))
        gray = (x * luma).sum(1, keepdim=True)
        is_saturation, is_contrast = (
            _per_frame(_to(x, [float(kind == name) for kind in kinds]))
            for name in ("saturation", "contrast")
        )
        base = gray * is_saturation + gray.mean((2, 3), keepdim=True) * is_contrast
        x = (x * factors + (1 - factors) * base).clamp(0, 255)
        if "hue" in kinds:
            slots = _slots(x, [kind == "hue" for kind in kinds])
            x[slots] = _rotate_hue(x[slots], [value for kind, value in steps if kind == "hue"])
    return _quantized(x)


def _to(like: Tensor, values: object) -> Tensor:
    """Return numbers as a float32 tensor on the device of another one."""
    return copy_to_device(np.asarray(values, np.float32), like.device)


def _slots(like: Tensor, chosen: Sequence[bool]) -> Tensor:
    return copy_to_device(np.flatnonzero(chosen), like.device)


def _per_frame(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _mixed(x: Tensor, matrices: Tensor) -> Tensor:
    """Multiply the channels of frames (B, 3, H, W) by color matrices (B, 3, 3) or (1, 3, 3)."""
    # Sums of products, since matrix products may be computed in TF32.
    red, green, blue = (x[:, i : i + 1] * matrices[:, :, i, None, None] for i in range(3))
    return red + green + blue


def _quantized(x: Tensor) -> Tensor:
    return x.round().clamp(0, 255)


def _blur(x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Blur each frame with a Gaussian of its own; a standard deviation of 0 changes nothing.

    The kernels have OpenCV's size for 8-bit images, 6 sigma + 1 rounded up to an odd number.
    """
    radii = [(round(6 * sigma + 1) | 1) // 2 for sigma in sigmas]
    radius = max(radii)
    kernels = np.zeros((len(sigmas), 2 * radius + 1))
    for kernel, sigma, own in zip(kernels, sigmas, radii, strict=True):
        offsets = np.arange(-own, own + 1)
        weights = np.exp(-0.5 * (offsets / sigma) ** 2) if sigma else np.ones(1)
        kernel[radius - own : radius + own + 1] = weights / weights.sum()
    taps = _to(x, kernels)
    for axis in (3, 2):
        padding = (radius, radius, 0, 0) if axis == 3 else (0, 0, radius, radius)
        padded = F.pad(x, padding, mode="reflect")
        # Sums of shifted frames: a convolution would compute in TF32.
        x = sum(
            (
                padded.narrow(axis, tap, x.shape[axis]) * _per_frame(taps[:, tap])
                for tap in range(2 * radius + 1)
            ),
            torch.zeros_like(x),
        )
    return x


def _compress(x: Tensor, qualities: Sequence[int]) -> Tensor:
    """Compress frames (B, 3, H, W) as JPEG does, with chroma of half the size, and decompress."""
    height, width = x.shape[-2:]
    to_ycc = _to(x, _TO_YCC)
    center = _to(x, [0, 128, 128])[:, None, None]
    ycc = _quantized(_mixed(x, to_ycc[None]) + center)
    ycc = F.pad(ycc, (0, -width % 16, 0, -height % 16), mode="replicate")
    chroma = F.avg_pool2d(ycc[:, 1:], 2)
    # Of two halves, libjpeg rounds one down and one up, in turns.
    bias = _to(x, [0.25, 0.5]).repeat(chroma.shape[-1] // 2)
    luminance, chrominance = (
        _to(x, [_quantization(table, quality) for quality in qualities])[:, None, None, None]
        for table in (_LUMINANCE, _CHROMINANCE)
    )
    y = _round_trip(ycc[:, :1], luminance)
    chroma = _round_trip((chroma + bias).floor(), chrominance)
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False).round()
    decoded = torch.cat([y, chroma], 1)[..., :height, :width] - center
    return _quantized(_mixed(decoded, _to(x, _TO_RGB)[None]))


def _quantization(table: tuple[tuple[int, ...], ...], quality: int) -> NDArray[np.int64]:
    """Return libjpeg's table, (8, 8), for a quality of 1…100."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.asarray(np.clip((np.array(table) * scale + 50) // 100, 1, 255), np.int64)


def _round_trip(x: Tensor, steps: Tensor) -> Tensor:
    """Quantize the cosine transform of blocks of 8×8 pixels; return the decoded channels."""
    rows = np.arange(8)
    cosine = np.cos((2 * rows + 1) * rows[:, None] * np.pi / 16) / 2
    cosine[0] /= np.sqrt(2)
    dct = _to(x, cosine)
    # (B, C, rows of blocks, columns of blocks, 8, 8)
    blocks = (x - 128).unfold(2, 8, 8).unfold(3, 8, 8)
    coefficients = ((dct @ blocks @ dct.T) / steps).round() * steps
    decoded = dct.T @ coefficients @ dct + 128
    return _quantized(decoded.transpose(3, 4).reshape(x.shape))


def _rotate_hue(x: Tensor, shifts: Sequence[float]) -> Tensor:
    """Rotate the hue of frames (B, 3, H, W) in 0…255, in HSV, by full turns."""
    value, chroma = x.amax(1), x.amax(1) - x.amin(1)
    red, green, blue = x.unbind(1)
    divisor = chroma.clamp(min=1e-6)
    # In sixths of a turn.
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    hue = hue + 6 * _to(x, shifts)[:, None, None]
    channels = []
    for start in (5, 3, 1):
        k = (start + hue) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)
