"""The compiled area averaging equals exact integer arithmetic and OpenCV, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fada_deploy.common import images
from fada_deploy.runtime.kernels import resize
from fada_deploy.runtime.kernels.loader import KernelLoader, kernel_loader
from fada_deploy.runtime.kernels.resize import resize_frame, resize_plan

# Common camera sizes and network input sizes, (height, width).
COMMON_SIZES = [
    ((1080, 1920), (512, 1024)),
    ((720, 1280), (512, 1024)),
    ((2160, 3840), (512, 1024)),
    ((1440, 2560), (512, 1024)),
    ((1200, 1920), (512, 1024)),
    ((1216, 1936), (512, 1024)),
    ((540, 960), (256, 512)),
    ((480, 640), (256, 512)),
]


@pytest.fixture(autouse=True)
def with_kernels() -> Iterator[None]:
    pytest.importorskip("numba")
    assert kernel_loader.wait()
    resize._opencv_agrees.cache_clear()
    yield
    resize._opencv_agrees.cache_clear()


def exact_average(frame: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Average in integers; the denominator is odd, so no value is halfway between two grays."""

    def axis_weights(old: int, new: int) -> tuple[np.ndarray, int]:
        scale = Fraction(old, new)
        table = np.zeros((new, old), np.int64)
        for i in range(new):
            low, high = i * scale, (i + 1) * scale
            for j in range(int(low), min(old, int(high) + 1)):
                covered = max(Fraction(0), min(high, Fraction(j + 1)) - max(low, Fraction(j)))
                table[i, j] = int(covered * scale.denominator)
        return table, scale.numerator

    (rows, y_parts), (columns, x_parts) = (
        axis_weights(a, b) for a, b in zip(frame.shape, size_hw, strict=False)
    )
    sums = np.einsum("hH,HWc,wW->hwc", rows, frame.astype(np.int64), columns, optimize=True)
    parts = y_parts * x_parts
    assert parts % 2 == 1
    return np.asarray((2 * sums + parts) // (2 * parts), np.uint8)


def make_frame(rng: np.random.Generator, shape: tuple[int, int], kind: str) -> np.ndarray:
    """Return a frame; black and white gives the largest sums, two grays the closest decisions."""
    if kind == "two grays":
        return rng.choice(np.uint8([127, 128]), (*shape, 3))
    if kind == "black and white":
        return rng.choice(np.uint8([0, 255]), (*shape, 3))
    return rng.integers(0, 256, (*shape, 3), np.uint8)


KINDS = ("noise", "two grays", "black and white")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_equals_opencv_whenever_there_is_a_plan(data: st.DataObject) -> None:
    """Test the condition of `resize_plan` alone, without the runtime comparison with OpenCV."""
    axes = []
    for _ in range(2):
        new, common = data.draw(st.integers(1, 64)), data.draw(st.integers(1, 4))
        # Plans exist for odd denominators.
        old = new + 2 * data.draw(st.integers(0, new)) + (new + 1) % 2
        axes.append((old * common, new * common))
    shape, size = ((axes[0][i], axes[1][i]) for i in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resize, "_opencv_agrees", lambda kernels: True)
        assume(resize_plan(shape, size) is not None)
        frame = make_frame(
            np.random.default_rng(data.draw(st.integers(0, 99))),
            shape,
            data.draw(st.sampled_from(KINDS)),
        )
        resized = resize_frame(frame, size)
    np.testing.assert_array_equal(resized, images.resize_frame(frame, size))
    np.testing.assert_array_equal(resized, exact_average(frame, size))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "size"), COMMON_SIZES)
def test_equals_opencv_at_common_sizes(
    shape: tuple[int, int], size: tuple[int, int], kind: str
) -> None:
    assert resize_plan(shape, size) is not None
    frame = make_frame(np.random.default_rng(1), shape, kind)
    np.testing.assert_array_equal(resize_frame(frame, size), images.resize_frame(frame, size))


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1024, 2048), (512, 1024)),  # integer factor: OpenCV is fast
        ((1024, 1920), (512, 1024)),  # even denominator: ties are possible
        ((1052, 1914), (512, 1024)),  # OpenCV's error may exceed the distance to a tie
        ((1999, 3999), (1000, 2000)),  # OpenCV ignores such small overlaps
        ((256, 1920), (512, 1024)),
        ((512, 1024), (512, 1024)),
        ((1, 1), (1, 1)),
    ],
)
def test_uses_opencv_without_a_plan(shape: tuple[int, int], size: tuple[int, int]) -> None:
    assert resize_plan(shape, size) is None
    frame = make_frame(np.random.default_rng(1), shape, "noise")
    np.testing.assert_array_equal(resize_frame(frame, size), images.resize_frame(frame, size))


def test_accepts_a_view_of_a_larger_image() -> None:
    frame = make_frame(np.random.default_rng(2), (540, 1000), "noise")
    for view in (frame[:, 20:980], frame[:, 20:980, ::-1]):
        np.testing.assert_array_equal(
            resize_frame(view, (256, 512)),
            images.resize_frame(np.ascontiguousarray(view), (256, 512)),
        )


@pytest.mark.parametrize("shape", [(540, 960), (540, 960, 1), (540, 960, 4)])
def test_uses_opencv_for_other_shapes_and_dtypes(shape: tuple[int, ...]) -> None:
    frame = np.random.default_rng(4).integers(0, 256, shape, np.uint8)
    for image in (frame, frame.astype(np.float32)):
        np.testing.assert_array_equal(
            resize_frame(image, (256, 512)), images.resize_frame(image, (256, 512))
        )


def test_accepts_a_read_only_image() -> None:
    """Pillow and other libraries return read-only arrays."""
    frame = make_frame(np.random.default_rng(5), (540, 960), "noise")
    expected = images.resize_frame(frame, (256, 512))
    frame.flags.writeable = False
    np.testing.assert_array_equal(resize_frame(frame, (256, 512)), expected)


def test_uses_opencv_if_it_rounds_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inference must resize as training did, so OpenCV's result has precedence."""
    original = images.resize_frame

    def rounded_differently(frame: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
        return np.asarray(original(frame, size_hw) & 254, np.uint8)

    monkeypatch.setattr(images, "resize_frame", rounded_differently)
    frame = make_frame(np.random.default_rng(3), (540, 960), "noise")
    np.testing.assert_array_equal(
        resize_frame(frame, (256, 512)), rounded_differently(frame, (256, 512))
    )


def test_size_may_be_a_list() -> None:
    frame = make_frame(np.random.default_rng(3), (540, 960), "noise")
    assert resize_frame(frame, [256, 512]).shape == (256, 512, 3)  # type: ignore[arg-type]


def test_resizing_frames_starts_the_kernel_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models with head `labels` never upsample here, but their overlays use the kernels too."""
    started: list[int] = []
    fresh = KernelLoader()
    monkeypatch.setattr(KernelLoader, "_load", lambda self: started.append(1))
    monkeypatch.setattr(resize, "kernel_loader", fresh)
    frame = make_frame(np.random.default_rng(3), (64, 128), "noise")
    for count in range(4):
        assert len(started) == 0, count
        assert resize_frame(frame, (64, 128)) is frame
    assert fresh.wait() is False and started == [1]


def test_result_is_the_same_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = make_frame(np.random.default_rng(3), (540, 960), "noise")
    resized = resize_frame(frame, (256, 512))
    monkeypatch.setattr(kernel_loader, "ready", None)
    np.testing.assert_array_equal(resize_frame(frame, (256, 512)), resized)
