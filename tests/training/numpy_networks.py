"""Layers of networks in NumPy, forward and backward, that share nothing with the package."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray


# Each returns its output and a function from output gradient to input gradient.


def conv(
    x: Array, weight: Array, bias: Array, stride: int, pad: int
) -> tuple[Array, Callable[[Array], tuple]]:
    k = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k), axis=(2, 3))[
        :, :, ::stride, ::stride
    ]
    y = np.einsum("bchwij,ocij->bohw", windows, weight, optimize=True) + bias[:, None, None]

    def backward(dy: Array) -> tuple[Array, Array, Array]:
        dw = np.einsum("bohw,bchwij->ocij", dy, windows, optimize=True)
        dx = np.zeros_like(padded)
        h, w = dy.shape[-2:]
        for i in range(k):
            for j in range(k):
                part = np.einsum("bohw,oc->bchw", dy, weight[:, :, i, j], optimize=True)
                dx[:, :, i : i + stride * h : stride, j : j + stride * w : stride] += part
        inner = dx[:, :, pad : pad + x.shape[2], pad : pad + x.shape[3]]
        return inner, dw, dy.sum((0, 2, 3))

    return y, backward


def interpolation(n_in: int, n_out: int) -> Array:
    """Return the matrix of linear interpolation with align_corners."""
    m = np.zeros((n_out, n_in))
    for o in range(n_out):
        at = o * (n_in - 1) / (n_out - 1)
        low = min(int(at), n_in - 2)
        m[o, low], m[o, low + 1] = 1 - (at - low), at - low
    return m


def upsampled(x: Array, hw: tuple[int, int]) -> tuple[Array, Callable[[Array], Array]]:
    my, mx = interpolation(x.shape[2], hw[0]), interpolation(x.shape[3], hw[1])
    y = np.einsum("oh,bchw,pw->bcop", my, x, mx, optimize=True)
    return y, lambda dy: np.einsum("oh,bcop,pw->bchw", my, dy, mx, optimize=True)


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def discriminate(
    layers: list[tuple[Array, Array, int]], heads: int, x: Array
) -> tuple[Array, Callable]:
    """Run a discriminator given as (weight, bias, stride), with leaky ReLUs between the layers.

    The last `heads` layers read the same input; their outputs are concatenated.
    """
    steps: list[tuple[Callable, Array]] = []
    body, last = layers[:-heads], layers[-heads:]
    for weight, bias, stride in body:
        u, back = conv(x, weight, bias, stride, 1)
        steps.append((back, np.where(u > 0, 1.0, 0.2)))
        x = np.where(u > 0, u, 0.2 * u)
    outs = [conv(x, w, b, s, 1) for w, b, s in last]
    z = np.concatenate([y for y, _ in outs], 1)

    def backward(dz: Array) -> tuple[Array, list[tuple[Array, Array]]]:
        pieces = [back(d) for (_, back), d in zip(outs, np.split(dz, heads, 1), strict=True)]
        dx = sum(p[0] for p in pieces)
        grads = [(p[1], p[2]) for p in pieces]
        for back, slope in reversed(steps):
            dx, dw, db = back(dx * slope)
            grads.insert(0, (dw, db))
        return dx, grads

    return z, backward
