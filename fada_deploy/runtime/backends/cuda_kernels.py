"""Device code that makes label maps and finished pictures where the logits lie.

Plain C: what a GPU needs beyond it is in `CUDA`, and a test compiles the same `SOURCE` for the CPU with those
macros written out. It is to equal `runtime.kernels.upsample.dense_labels` and `runtime.overlay.blend.overlay` bit for bit, so
products and sums are rounded one by one, and the host hands over the very weights and blended colors that those
use.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fada_deploy.runtime.kernels.upsample import Taps, axis_taps
from fada_deploy.runtime.overlay.blend import overlay

# A fused multiply-add would round once where the reference rounds twice, and CuPy has numbers below 2⁻¹²⁶ flushed
# to zero (-ftz=true). Instructions that name their rounding are left as they are, whatever the options say.
OPTIONS = ("--fmad=false",)
# As `runtime.kernels.upsample` has it: far beyond any network.
LARGEST = np.float32(1e37)
THREADS = 256

CUDA = """
#define KERNEL extern "C" __global__ void
#define INLINE static __device__ __forceinline__
#define FOR_EACH(i, n) \\
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < (n); \\
         i += (long long)gridDim.x * blockDim.x)
INLINE float MUL(float a, float b) { float r; asm("mul.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b)); return r; }
INLINE float ADD(float a, float b) { float r; asm("add.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b)); return r; }
INLINE int GREATER(float a, float b)
{
    int r;
    asm("{ .reg .pred p; setp.gt.f32 p, %1, %2; selp.s32 %0, 1, 0, p; }" : "=r"(r) : "f"(a), "f"(b));
    return r;
}
"""

SOURCE = """
typedef unsigned char u8;

/* One axis of the enlargement: each pixel's two neighbors on the grid and their weights. */
struct Axis { const int *low, *high; const float *w_low, *w_high; };

/* The class of one pixel of one image: logits (classes, h, w), the lower class on a tie. */
INLINE u8 winner(const float *logits, int classes, int h, int w, struct Axis ys, struct Axis xs, int y, int x)
{
    const long long upper = (long long)ys.low[y] * w, lower = (long long)ys.high[y] * w;
    const int left = xs.low[x], right = xs.high[x];
    const float w_left = xs.w_low[x], w_right = xs.w_high[x], w_upper = ys.w_low[y], w_lower = ys.w_high[y];
    float best = 0.0f;
    u8 label = 0;
    for (int k = 0; k < classes; k++) {
        const float *plane = logits + (long long)k * h * w;
        const float above = ADD(MUL(plane[upper + left], w_left), MUL(plane[upper + right], w_right));
        const float below = ADD(MUL(plane[lower + left], w_left), MUL(plane[lower + right], w_right));
        const float z = ADD(MUL(above, w_upper), MUL(below, w_lower));
        if (k == 0 || GREATER(z, best)) { best = z; label = (u8)k; }
    }
    return label;
}

/* Set *bad where a value is not finite or beyond `largest`, so that no class could be told. */
KERNEL find_unusable(const float *values, long long count, float largest, int *bad)
{
    FOR_EACH(i, count) { if (!(values[i] <= largest && values[i] >= -largest)) *bad = 1; }
}

/* logits (batch, classes, h, w) -> labels (batch, height, width) */
KERNEL label_pixels(const float *logits, int batch, int classes, int h, int w, int height, int width,
                    const int *y_low, const int *y_high, const float *yw_low, const float *yw_high,
                    const int *x_low, const int *x_high, const float *xw_low, const float *xw_high, u8 *labels)
{
    const struct Axis ys = {y_low, y_high, yw_low, yw_high}, xs = {x_low, x_high, xw_low, xw_high};
    const long long area = (long long)height * width;
    FOR_EACH(i, batch * area) {
        const long long image = i / area, pixel = i % area;
        labels[i] = winner(logits + image * classes * h * w, classes, h, w, ys, xs,
                           (int)(pixel / width), (int)(pixel % width));
    }
}

/* The same, and frames (batch, height, width, 3) blended by blend (classes, 256, 3): value -> value. */
KERNEL paint_pixels(const float *logits, int batch, int classes, int h, int w, int height, int width,
                    const int *y_low, const int *y_high, const float *yw_low, const float *yw_high,
                    const int *x_low, const int *x_high, const float *xw_low, const float *xw_high,
                    const u8 *frames, const u8 *blend, u8 *labels, u8 *pictures)
{
    const struct Axis ys = {y_low, y_high, yw_low, yw_high}, xs = {x_low, x_high, xw_low, xw_high};
    const long long area = (long long)height * width;
    FOR_EACH(i, batch * area) {
        const long long image = i / area, pixel = i % area;
        const u8 label = winner(logits + image * classes * h * w, classes, h, w, ys, xs,
                                (int)(pixel / width), (int)(pixel % width));
        labels[i] = label;
        for (int c = 0; c < 3; c++)
            pictures[3 * i + c] = blend[((int)label * 256 + frames[3 * i + c]) * 3 + c];
    }
}
"""


def blocks(count: int) -> int:
    """Return how many blocks of `THREADS` cover `count` pixels; each thread may do several."""
    return max(1, min((count + THREADS - 1) // THREADS, 1 << 16))


def taps_of(
    from_hw: tuple[int, int], size_hw: tuple[int, int], *, align_corners: bool
) -> list[NDArray[np.int32] | NDArray[np.float32]]:
    """Return the kernels' eight arrays: low, high (int32), w_low, w_high (float32) of y, then of x."""
    axes = [
        axis_taps(n, m, align_corners=align_corners) for n, m in zip(from_hw, size_hw, strict=True)
    ]
    return [array for axis in axes for array in _arrays(axis)]


def _arrays(axis: Taps) -> tuple[Any, ...]:
    return axis.low.astype(np.int32), axis.high.astype(np.int32), axis.w_low, axis.w_high


def blend_table(palette: NDArray[np.uint8], classes: int, alpha: float) -> NDArray[np.uint8]:
    """Return (classes, 256, 3) uint8: what `overlay` makes of each class's color over each value.

    Blending takes one byte to one byte for a class and a channel, so all its roundings fit into a table.
    """
    values = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], classes, axis=0).repeat(
        3, axis=2
    )
    labels = np.repeat(np.arange(classes, dtype=np.uint8)[:, None], 256, axis=1)
    return overlay(np.ascontiguousarray(values), labels, palette, alpha)
