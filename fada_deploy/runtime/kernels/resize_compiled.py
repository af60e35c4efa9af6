"""Area averaging, compiled by numba (extra `fast`); `runtime.kernels.resize` chooses it.

For each output row, the input rows are summed first, then the columns. The weights are integers, so
the sums are exact and only the final quotient is rounded.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

# Images from cameras and other libraries are often read-only arrays.
_READ = "Array(uint8, 2, 'C', readonly=True)"


@njit(
    f"void({_READ}, uint8[:,::1], intp[::1], uint16[:,::1], intp[::1], float32[:,::1], float32)",
    nogil=True, cache=True,
)  # fmt: skip
def average(
    source: NDArray[np.uint8],
    output: NDArray[np.uint8],
    y_first: NDArray[np.intp],
    y_weights: NDArray[np.uint16],
    x_first: NDArray[np.intp],
    x_weights: NDArray[np.float32],
    reciprocal: np.float32,
) -> None:  # pragma: no cover -- compiled code is invisible to coverage
    """Average RGB rows `source` (H, 3 W) into `output` (h, 3 w).

    For each axis, `first` (n,) is the index of the first input pixel and `weights` (n, taps) are
    the integer weights, taps ≥ 2. `reciprocal` is 1 / (sum of all weights of an output pixel).
    Column sums must fit into 16 bits and total sums into 24 bits.
    """
    height, width = output.shape
    length = source.shape[1]
    column_sums = np.empty(length, np.uint16)
    line = np.empty(length, np.float32)
    sums = np.empty(width, np.float32)
    for y in range(height):
        first = y_first[y]
        upper, lower = source[first], source[first + 1]
        upper_weight, lower_weight = y_weights[y, 0], y_weights[y, 1]
        for i in range(length):
            column_sums[i] = np.uint16(upper[i]) * upper_weight + np.uint16(lower[i]) * lower_weight
        for k in range(2, y_weights.shape[1]):
            weight = y_weights[y, k]
            if weight > 0:
                lower = source[first + k]
                for i in range(length):
                    column_sums[i] += np.uint16(lower[i]) * weight
        for i in range(length):
            line[i] = np.float32(column_sums[i])
        for x in range(x_first.shape[0]):
            # Separate variables for three colors and two columns stay in registers.
            at = 3 * x_first[x]
            left_weight, right_weight = x_weights[x, 0], x_weights[x, 1]
            red = line[at] * left_weight + line[at + 3] * right_weight
            green = line[at + 1] * left_weight + line[at + 4] * right_weight
            blue = line[at + 2] * left_weight + line[at + 5] * right_weight
            for k in range(2, x_weights.shape[1]):
                weight, offset = x_weights[x, k], at + 3 * k
                red += line[offset] * weight
                green += line[offset + 1] * weight
                blue += line[offset + 2] * weight
            sums[3 * x], sums[3 * x + 1], sums[3 * x + 2] = red, green, blue
        for i in range(width):
            output[y, i] = np.uint8(np.int32(sums[i] * reciprocal + np.float32(0.5)))
