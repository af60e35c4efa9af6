"""The compiled area averaging equals exact arithmetic, and with it OpenCV, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fada_deploy.common import images
from fada_deploy.runtime.kernels import resize
from fada_deploy.runtime.kernels.loader import Compiled, compiled
from fada_deploy.runtime.kernels.resize import plan_of, resize_frame

# Cameras' sizes that become networks' sizes, (height, width).
USUAL = [
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
    assert compiled.wait()
    resize._opencv_agrees.cache_clear()
    yield
    resize._opencv_agrees.cache_clear()


def exactly(frame: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Average by whole numbers throughout; the denominator is odd, so nothing is half-way."""

    def shares(old: int, new: int) -> tuple[np.ndarray, int]:
        scale = Fraction(old, new)
        table = np.zeros((new, old), np.int64)
        for i in range(new):
            low, high = i * scale, (i + 1) * scale
            for j in range(int(low), min(old, int(high) + 1)):
                covered = max(Fraction(0), min(high, Fraction(j + 1)) - max(low, Fraction(j)))
                table[i, j] = int(covered * scale.denominator)
        return table, scale.numerator

    (rows, y_parts), (columns, x_parts) = (
        shares(a, b) for a, b in zip(frame.shape, size_hw, strict=False)
    )
    sums = np.einsum("hH,HWc,wW->hwc", rows, frame.astype(np.int64), columns, optimize=True)
    parts = y_parts * x_parts
    assert parts % 2 == 1
    return np.asarray((2 * sums + parts) // (2 * parts), np.uint8)


def troubling(rng: np.random.Generator, shape: tuple[int, int], kind: str) -> np.ndarray:
    """A frame; black and white makes the largest sums, neighboring grays the closest calls."""
    if kind == "two grays":
        return rng.choice(np.uint8([127, 128]), (*shape, 3))
    if kind == "black and white":
        return rng.choice(np.uint8([0, 255]), (*shape, 3))
    return rng.integers(0, 256, (*shape, 3), np.uint8)


KINDS = ("noise", "two grays", "black and white")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_equal_to_opencv_wherever_there_is_a_plan(data: st.DataObject) -> None:
    """The plan's own condition, without the look at what OpenCV does."""
    axes = []
    for _ in range(2):
        new, common = data.draw(st.integers(1, 64)), data.draw(st.integers(1, 8))
        # Odd fractions have plans.
        old = new + 2 * data.draw(st.integers(0, new)) + (new + 1) % 2
        axes.append((old * common, new * common))
    shape, size = ((axes[0][i], axes[1][i]) for i in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resize, "_opencv_agrees", lambda kernels: True)
        assume(plan_of(shape, size) is not None)
        frame = troubling(
            np.random.default_rng(data.draw(st.integers(0, 99))),
            shape,
            data.draw(st.sampled_from(KINDS)),
        )
        found = resize_frame(frame, size)
    np.testing.assert_array_equal(found, images.resize_frame(frame, size))
    np.testing.assert_array_equal(found, exactly(frame, size))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "size"), USUAL)
def test_equal_to_opencv_at_usual_sizes(
    shape: tuple[int, int], size: tuple[int, int], kind: str
) -> None:
    assert plan_of(shape, size) is not None
    frame = troubling(np.random.default_rng(1), shape, kind)
    np.testing.assert_array_equal(resize_frame(frame, size), images.resize_frame(frame, size))


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1024, 2048), (512, 1024)),  # without a fraction, where OpenCV is fast
        ((1024, 1920), (512, 1024)),  # half-way between two values now and then
        ((1052, 1914), (512, 1024)),  # OpenCV's error may be larger than the distance to half-way
        ((1999, 3999), (1000, 2000)),  # OpenCV leaves out what is so small
        ((256, 1920), (512, 1024)),
        ((512, 1024), (512, 1024)),
        ((1, 1), (1, 1)),
    ],
)
def test_what_is_left_to_opencv(shape: tuple[int, int], size: tuple[int, int]) -> None:
    assert plan_of(shape, size) is None
    frame = troubling(np.random.default_rng(1), shape, "noise")
    np.testing.assert_array_equal(resize_frame(frame, size), images.resize_frame(frame, size))


def test_a_view_of_a_larger_picture() -> None:
    frame = troubling(np.random.default_rng(2), (540, 1000), "noise")
    for view in (frame[:, 20:980], frame[:, 20:980, ::-1]):
        np.testing.assert_array_equal(
            resize_frame(view, (256, 512)),
            images.resize_frame(np.ascontiguousarray(view), (256, 512)),
        )


@pytest.mark.parametrize("shape", [(540, 960), (540, 960, 1), (540, 960, 4)])
def test_other_pictures_are_left_to_opencv(shape: tuple[int, ...]) -> None:
    frame = np.random.default_rng(4).integers(0, 256, shape, np.uint8)
    for picture in (frame, frame.astype(np.float32)):
        np.testing.assert_array_equal(
            resize_frame(picture, (256, 512)), images.resize_frame(picture, (256, 512))
        )


def test_a_picture_that_cannot_be_written() -> None:
    """As libraries give them, Pillow among them."""
    frame = troubling(np.random.default_rng(5), (540, 960), "noise")
    expected = images.resize_frame(frame, (256, 512))
    frame.flags.writeable = False
    np.testing.assert_array_equal(resize_frame(frame, (256, 512)), expected)


def test_another_opencv_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that rounds otherwise: what training saw is what counts."""
    rounded = images.resize_frame

    def otherwise(frame: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
        return np.asarray(rounded(frame, size_hw) & 254, np.uint8)

    monkeypatch.setattr(images, "resize_frame", otherwise)
    frame = troubling(np.random.default_rng(3), (540, 960), "noise")
    np.testing.assert_array_equal(resize_frame(frame, (256, 512)), otherwise(frame, (256, 512)))


def test_a_size_may_be_a_list() -> None:
    frame = troubling(np.random.default_rng(3), (540, 960), "noise")
    assert resize_frame(frame, [256, 512]).shape == (256, 512, 3)  # type: ignore[arg-type]


def test_frames_load_the_kernels_whoever_makes_their_labels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Engines and files with head `labels` upsample by themselves, and are drawn all the same."""
    started: list[int] = []
    fresh = Compiled()
    monkeypatch.setattr(Compiled, "_load", lambda self: started.append(1))
    monkeypatch.setattr(resize, "compiled", fresh)
    frame = troubling(np.random.default_rng(3), (64, 128), "noise")
    for count in range(4):
        assert len(started) == 0, count
        assert resize_frame(frame, (64, 128)) is frame
    assert fresh.wait() is False and started == [1]


def test_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = troubling(np.random.default_rng(3), (540, 960), "noise")
    found = resize_frame(frame, (256, 512))
    monkeypatch.setattr(compiled, "ready", None)
    np.testing.assert_array_equal(resize_frame(frame, (256, 512)), found)
