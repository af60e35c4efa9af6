"""Area averaging of a picture, compiled: extra `fast` (numba). `runtime.kernels.resize` says when it may be used.

First the rows under one of the new picture's rows, then the columns under its pixels, in whole numbers throughout:
the sums are exact, and what is rounded is the quotient alone.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

# Cameras' and libraries' pictures are often arrays that cannot be written.
_READ = "Array(uint8, 2, 'C', readonly=True)"


@njit(
    f"void({_READ}, uint8[:,::1], intp[::1], uint16[:,::1], intp[::1], float32[:,::1], float32)",
    nogil=True, cache=True,
)  # fmt: skip
def average(
    source: NDArray[np.uint8],
    into: NDArray[np.uint8],
    y_first: NDArray[np.intp],
    y_weights: NDArray[np.uint16],
    x_first: NDArray[np.intp],
    x_weights: NDArray[np.float32],
    share: np.float32,
) -> None:  # pragma: no cover -- compiled, where coverage cannot look
    """Write the average of rows (H, 3 W) of RGB into (h, 3 w).

    `first` and `weights` of an axis: where a new pixel's old ones begin, and how many parts of each it takes (at
    least two); `share`: one part of one part. Every sum of a column's parts fits into 16 bits, all in all into 24.
    """
    height, width = into.shape
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
            # Three colors and the first two columns by name, so that the compiler keeps them in registers.
            at = 3 * x_first[x]
            one, two = x_weights[x, 0], x_weights[x, 1]
            red = line[at] * one + line[at + 3] * two
            green = line[at + 1] * one + line[at + 4] * two
            blue = line[at + 2] * one + line[at + 5] * two
            for k in range(2, x_weights.shape[1]):
                weight, place = x_weights[x, k], at + 3 * k
                red += line[place] * weight
                green += line[place + 1] * weight
                blue += line[place + 2] * weight
            sums[3 * x], sums[3 * x + 1], sums[3 * x + 2] = red, green, blue
        for i in range(width):
            into[y, i] = np.uint8(np.int32(sums[i] * share + np.float32(0.5)))
