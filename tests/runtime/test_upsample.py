"""The sparse upsampling equals the dense reference bit for bit and PyTorch up to rounding."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fada_deploy.common.errors import ModelError
from fada_deploy.runtime.kernels import upsample
from fada_deploy.runtime.kernels.loader import KernelLoader
from fada_deploy.runtime.kernels.upsample import (
    axis_taps,
    confidence_from_logits,
    dense_labels,
    labels_from_logits,
    mixed_fraction,
)


@pytest.fixture(autouse=True, params=["numpy", "compiled"])
def implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run every test with NumPy only and with the compiled kernel."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "numpy":
            patch.setattr(upsample, "kernel_loader", SimpleNamespace(ready=None))
        else:
            pytest.importorskip("numba")
            assert upsample.kernel_loader.wait()
        yield


@st.composite
def grids(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, int], bool]:
    """Generate difficult logits: ties, neighbors one ulp apart, all scales and shapes."""
    shape = draw(st.tuples(st.integers(2, 6), st.integers(1, 6), st.integers(1, 6)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    z = rng.choice(np.float32([-1, 0, 1 / 3, 1, 7]), shape)
    if draw(st.booleans()):
        z = rng.normal(size=shape).astype(np.float32)
    if draw(st.booleans()):
        z[1:] = z[:1]
    for _ in range(draw(st.integers(0, 2))):
        z = np.where(rng.random(shape) < 0.5, np.nextafter(z, np.float32(9)), z)
    z = z * np.float32(10.0 ** draw(st.sampled_from([-40, -30, 0, 4, 30])))
    size = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    return z.astype(np.float32), size, draw(st.booleans())


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(grids())
def test_sparse_equals_dense_bit_for_bit(case: tuple[np.ndarray, tuple[int, int], bool]) -> None:
    z, size, align_corners = case
    sparse = labels_from_logits(z, size, align_corners=align_corners)
    assert sparse.dtype == np.uint8 and sparse.shape == size
    np.testing.assert_array_equal(sparse, dense_labels(z, size, align_corners=align_corners))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(128, 256), (135, 240), (31, 77), (9, 20)])
def test_sparse_equals_dense_where_most_cells_are_skipped(
    size: tuple[int, int], align_corners: bool
) -> None:
    rng = np.random.default_rng(3)
    coarse = rng.normal(size=(19, 4, 6)).astype(np.float32)
    z = coarse.repeat(8, 1).repeat(8, 2) + 0.01 * rng.normal(size=(19, 32, 48)).astype(np.float32)
    assert 0.05 < mixed_fraction(z) < 0.6
    sparse = labels_from_logits(z, size, align_corners=align_corners)
    np.testing.assert_array_equal(sparse, dense_labels(z, size, align_corners=align_corners))


def test_corners_one_ulp_apart_are_interpolated() -> None:
    # Class 1 wins all four corners by one ulp, but rounding lets class 0 win somewhere inside, so a
    # shortcut that only compares the argmax of the corners would be wrong.
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(200):
        low = rng.normal(size=(1, 2, 2)).astype(np.float32)
        z = np.concatenate([low, np.nextafter(low, np.float32(9))])
        dense = dense_labels(z, (16, 16), align_corners=True)
        wrong += bool((dense != 1).any())
        np.testing.assert_array_equal(labels_from_logits(z, (16, 16), align_corners=True), dense)
    assert wrong > 0


def test_class_that_wins_only_inside_a_cell() -> None:
    # Classes 0 and 1 win at the corners; halfway between, class 2 has 0.6 and they have 0.5.
    z = np.float32([[[1, 0], [1, 0]], [[0, 1], [0, 1]], [[0.6, 0.6], [0.6, 0.6]]])
    labels = labels_from_logits(z, (5, 5), align_corners=True)
    np.testing.assert_array_equal(labels, [[0, 0, 2, 1, 1]] * 5)


def test_ties_go_to_the_lower_class() -> None:
    assert not labels_from_logits(
        np.zeros((5, 3, 3), np.float32), (9, 9), align_corners=False
    ).any()
    z = np.float32([[[0.0]], [[2.0]], [[2.0]]])
    assert (labels_from_logits(z, (3, 4), align_corners=False) == 1).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2e37])
def test_rejects_logits_that_are_not_finite(bad: float) -> None:
    z = np.zeros((3, 4, 4), np.float32)
    z[1, 2, 3] = bad
    for function in (labels_from_logits, dense_labels, confidence_from_logits):
        with pytest.raises(ModelError, match="not finite"):
            function(z, (8, 8), align_corners=False)


def test_axis_taps_for_doubling() -> None:
    taps = axis_taps(2, 4, align_corners=False)
    np.testing.assert_array_equal(taps.low, [0, 0, 0, 1])
    np.testing.assert_array_equal(taps.w_high, np.float32([0, 0.25, 0.75, 0.25]))
    np.testing.assert_array_equal(taps.high, [1, 1, 1, 1])
    np.testing.assert_array_equal((taps.first, taps.count), [[0, 3], [3, 1]])


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(64, 128), (45, 101), (5, 9), (1, 1)])
def test_differs_from_torch_only_within_rounding(
    size: tuple[int, int], align_corners: bool
) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    z = rng.normal(size=(7, 12, 20)).astype(np.float32) * 5
    # Two classes one ulp apart produce many near-ties.
    z[3] = np.nextafter(z[2], np.float32(99))
    full = torch.nn.functional.interpolate(
        torch.from_numpy(z)[None],
        size,
        mode="bilinear",
        align_corners=align_corners,
        antialias=False,
    )[0]
    theirs = full.argmax(0).numpy()
    top = full.double().topk(2, 0).values.numpy()
    ours = labels_from_logits(z, size, align_corners=align_corners)
    ulp = np.spacing(np.abs(z).max())
    differing = ours != theirs
    # Positions may also differ in the last bit, which changes the interpolated value slightly.
    assert (top[0] - top[1])[differing].max(initial=0) <= 16 * ulp
    assert (differing & ~np.isin(ours, (2, 3))).sum() == 0


def test_confidence_is_the_softmax_of_the_winner() -> None:
    rng = np.random.default_rng(2)
    z = rng.normal(size=(4, 6, 8)).astype(np.float32)
    softmax = np.exp(z) / np.exp(z).sum(0)
    np.testing.assert_allclose(
        confidence_from_logits(z, (6, 8), align_corners=False), softmax.max(0), rtol=1e-5
    )
    enlarged = confidence_from_logits(z, (20, 30), align_corners=True)
    assert enlarged.shape == (20, 30) and enlarged.min() >= 0.25 and enlarged.max() <= 1
    assert enlarged[0, 0] == pytest.approx(softmax.max(0)[0, 0], rel=1e-5)


def test_writes_into_out() -> None:
    rng = np.random.default_rng(4)
    z = rng.normal(size=(5, 6, 9)).astype(np.float32)
    want = dense_labels(z, (20, 31), align_corners=True)
    batch = np.full((3, 20, 31), 9, np.uint8)
    assert labels_from_logits(z, (20, 31), align_corners=True, out=batch[1]) is not None
    np.testing.assert_array_equal(batch[1], want)
    assert (batch[[0, 2]] == 9).all()
    # Inputs and outputs with arbitrary strides.
    wide = np.full((20, 62), 9, np.uint8)
    planes = np.asfortranarray(z)
    labels_from_logits(planes, (20, 31), align_corners=True, out=wide[:, ::2])
    np.testing.assert_array_equal(wide[:, ::2], want)
    assert (wide[:, 1::2] == 9).all()


def test_accepts_read_only_logits() -> None:
    z = np.random.default_rng(0).normal(size=(5, 8, 9)).astype(np.float32)
    want = dense_labels(z, (20, 31), align_corners=True)
    z.flags.writeable = False
    np.testing.assert_array_equal(labels_from_logits(z, (20, 31), align_corners=True), want)


def test_loader_starts_after_three_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(KernelLoader, "_load", lambda self: started.append("now"))
    loader = KernelLoader()
    assert [loader.get() for _ in range(3)] == [None] * 3 and started == []
    loader.get()
    assert loader.wait() is False and started == ["now"]


def test_loader_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fada_deploy.runtime.kernels.loader.find_spec", lambda name: None)
    loader = KernelLoader()
    assert loader.wait() is False and loader.get() is None


def test_loader_with_a_kernel_that_fails_to_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fada_deploy.runtime.kernels.upsample_compiled", None)
    monkeypatch.setattr("fada_deploy.runtime.kernels.loader.find_spec", lambda name: object())
    monkeypatch.delattr("fada_deploy.runtime.kernels.upsample_compiled", raising=False)
    assert KernelLoader().wait() is False
