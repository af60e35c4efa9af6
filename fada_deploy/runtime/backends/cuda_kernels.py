"""CUDA source code that computes label maps from logits on the GPU.

The source is plain C; the CUDA-specific parts are the macros in `CUDA`, and a test compiles the
same `SOURCE` for the CPU with other macros. The result must equal
`runtime.kernels.upsample.dense_labels` bit for bit. So each product and sum is rounded separately,
and the host passes the same interpolation weights.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fada_deploy.runtime.kernels.upsample import axis_taps

# A fused multiply-add rounds once where the reference rounds twice. CuPy also adds -ftz=true, which
# flushes numbers below 2⁻¹²⁶ to zero; instructions with an explicit rounding mode ignore both
# options.
OPTIONS = ("--fmad=false",)
# The limit of `runtime.kernels.upsample`: far above any real logit.
LARGEST = np.float32(1e37)
THREADS = 256

CUDA = """
#define KERNEL extern "C" __global__ void
#define INLINE static __device__ __forceinline__
#define FOR_EACH(i, n) \\
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < (n); \\
         i += (long long)gridDim.x * blockDim.x)
INLINE float MUL(float a, float b)
{
    float r;
    asm("mul.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}
INLINE float ADD(float a, float b)
{
    float r;
    asm("add.rn.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));
    return r;
}
INLINE int GREATER(float a, float b)
{
    int r;
    asm("{ .reg .pred p; setp.gt.f32 p, %1, %2; selp.s32 %0, 1, 0, p; }"
        : "=r"(r) : "f"(a), "f"(b));
    return r;
}
"""

SOURCE = """
typedef unsigned char u8;

/* One axis of the upsampling: each pixel's two grid neighbors and their weights. */
struct Axis { const int *low, *high; const float *w_low, *w_high; };

/* The argmax at one pixel of logits (classes, h, w); the lower class wins a tie. */
INLINE u8 argmax(const float *logits, int classes, int h, int w,
                 struct Axis ys, struct Axis xs, int y, int x)
{
    const long long upper = (long long)ys.low[y] * w, lower = (long long)ys.high[y] * w;
    const int left = xs.low[x], right = xs.high[x];
    const float w_left = xs.w_low[x], w_right = xs.w_high[x];
    const float w_upper = ys.w_low[y], w_lower = ys.w_high[y];
    float best = 0.0f;
    u8 label = 0;
    for (int k = 0; k < classes; k++) {
        const float *plane = logits + (long long)k * h * w;
        const float above = ADD(MUL(plane[upper + left], w_left),
                                MUL(plane[upper + right], w_right));
        const float below = ADD(MUL(plane[lower + left], w_left),
                                MUL(plane[lower + right], w_right));
        const float z = ADD(MUL(above, w_upper), MUL(below, w_lower));
        if (k == 0 || GREATER(z, best)) { best = z; label = (u8)k; }
    }
    return label;
}

/* Set *bad if any value is NaN or exceeds `largest` in magnitude. */
KERNEL find_unusable(const float *values, long long count, float largest, int *bad)
{
    FOR_EACH(i, count) { if (!(values[i] <= largest && values[i] >= -largest)) *bad = 1; }
}

/* logits (batch, classes, h, w) -> labels (batch, height, width) */
KERNEL label_pixels(const float *logits, int batch, int classes, int h, int w,
                    int height, int width,
                    const int *y_low, const int *y_high,
                    const float *yw_low, const float *yw_high,
                    const int *x_low, const int *x_high,
                    const float *xw_low, const float *xw_high, u8 *labels)
{
    const struct Axis ys = {y_low, y_high, yw_low, yw_high};
    const struct Axis xs = {x_low, x_high, xw_low, xw_high};
    const long long area = (long long)height * width;
    FOR_EACH(i, batch * area) {
        const long long image = i / area, pixel = i % area;
        labels[i] = argmax(logits + image * classes * h * w, classes, h, w, ys, xs,
                           (int)(pixel / width), (int)(pixel % width));
    }
}
"""


def num_blocks(count: int) -> int:
    """Return the grid size for `count` items; with the maximum, each thread processes several."""
    return max(1, min((count + THREADS - 1) // THREADS, 1 << 16))


def kernel_taps(
    from_hw: tuple[int, int], size_hw: tuple[int, int], *, align_corners: bool
) -> list[NDArray[np.int32] | NDArray[np.float32]]:
    """Return the kernel's eight arrays: low, high (int32), w_low, w_high (float32) of y, then x."""
    arrays: list[NDArray[np.int32] | NDArray[np.float32]] = []
    for n_in, n_out in zip(from_hw, size_hw, strict=True):
        taps = axis_taps(n_in, n_out, align_corners=align_corners)
        arrays += [taps.low.astype(np.int32), taps.high.astype(np.int32), taps.w_low, taps.w_high]
    return arrays
