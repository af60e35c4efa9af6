"""Open an exported model and segment frames, images, videos and streams.

```python
from fada_deploy import Segmenter

with Segmenter("model.onnx") as segmenter:
    for result in segmenter.stream("drive.mp4"):
        show(result.labels, result.overlay())
```
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, cast, overload

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.images import read_rgb
from fada_deploy.common.label_space import LabelSpace
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.common.runs import exported_model
from fada_deploy.runtime.backend_selection import open_backend
from fada_deploy.runtime.backends import Backend, Prediction
from fada_deploy.runtime.kernels.resize import resize_frame
from fada_deploy.runtime.pipeline import Timings, run_pipeline
from fada_deploy.runtime.result import Result
from fada_deploy.runtime.sources.base import Source
from fada_deploy.runtime.sources.open import SourceSpec, open_sources
from fada_deploy.runtime.sources.streams import LiveSource

Image = NDArray[np.uint8]


class PilImage(Protocol):
    """The part of a PIL image that is used here; PIL itself is not required."""

    def convert(self, mode: str) -> Any:
        """Return the image in another mode."""
        ...


# OpenCV annotates its images as arrays of several types; `_to_image` checks the type.
ImageInput = NDArray[Any] | str | Path | Result | PilImage
COLOR_ORDERS = ("rgb", "bgr")


class Segmenter:
    """An exported model that segments frames of any size; safe to share between threads.

    It cannot be sent to another process; open one in each process.

    Args:
        model: An exported file (.onnx or .engine), the folder of a run that holds one, or
            "builtin" for the built-in model.
        device: "auto", "cpu", or a GPU as "cuda", "cuda:N" or N.
        backend: "auto", "onnxruntime", "openvino" or "tensorrt".
        batch: Number of frames per inference call, at most the fixed batch of the file [the fixed
            batch of the file, otherwise 1].
        parallel: Number of inference requests that run at the same time on a CPU and share its
            cores. 1 has the lowest latency, one for each core usually the highest throughput.
        allow_unverified: Run an engine that was never compared with its reference outputs.

    Raises:
        ModelError: The file is missing, damaged, or not an exported model.
        DeviceError: The device is not available.
        ToleranceError: An engine's outputs differ from its reference outputs.
        UsageError: An argument is invalid, or the backend is not installed.
    """

    path: Path
    backend: Backend

    def __init__(
        self,
        model: str | Path,
        *,
        device: str | int = "auto",
        backend: str = "auto",
        batch: int | None = None,
        parallel: int = 1,
        allow_unverified: bool = False,
    ) -> None:
        for name, number in (("batch", batch), ("parallel", parallel)):
            if number is not None and (not isinstance(number, Integral) or number < 1):
                raise UsageError(f"{name} must be a whole number of at least 1, got {number!r}")
        if not isinstance(model, str | Path):
            raise UsageError(
                f"model must be the path of an exported file or run, got {type(model).__name__}"
            )
        self.path = exported_model(Path(model))
        self.backend = open_backend(
            self.path,
            device=device,
            backend=backend,
            parallel=parallel,
            allow_unverified=allow_unverified,
        )
        fixed = self.metadata.batch
        self.batch = min(batch or fixed or 1, fixed or batch or 1)

    def __repr__(self) -> str:
        metadata, backend = self.metadata, self.backend
        height, width = metadata.input_size_hw
        return (
            f"Segmenter({str(self.path)!r}, {backend.name} on {backend.device}, "
            f"{metadata.precision}, input {width}x{height})"
        )

    @property
    def metadata(self) -> ModelMetadata:
        """The metadata that was written into the model at export."""
        return self.backend.metadata

    @property
    def space(self) -> LabelSpace:
        """The label space: names, ids and colors of the classes."""
        return self.metadata.label_space

    @overload  # a text is a sequence of texts, but the first signature is found first
    def predict(  # type: ignore[overload-overlap]
        self, frames: ImageInput, *, color: str | None = None, confidence: bool = False
    ) -> Result: ...

    @overload
    def predict(
        self,
        frames: Sequence[ImageInput],
        *,
        color: str | None = None,
        confidence: bool = False,
    ) -> list[Result]: ...

    def predict(
        self,
        frames: ImageInput | Sequence[ImageInput],
        *,
        color: str | None = None,
        confidence: bool = False,
    ) -> Result | list[Result]:
        """Segment one image, or a list of images of any sizes.

        Args:
            frames: An image, or a sequence of images. An image is a NumPy array (H, W, 3)
                uint8, the path of an image file, a PIL image, or another `Result`. Files and PIL
                images of other kinds (gray, with an alpha channel, 16 bits) are converted. An array
                is not copied: it becomes `Result.frame`.
            color: Channel order of NumPy images, "rgb" or "bgr". It has no default, because the
                two orders cannot be told apart. Other kinds of image do not need it.
            confidence: Also return the softmax probability of each pixel's class.

        Returns:
            A `Result` for one image, otherwise a list of them in the same order.

        Raises:
            UsageError: `color` is missing or unknown, an input is not an image, or there is none.
            DataError: An image file cannot be read.
            ModelError: The model is closed or fails, or it was exported with the head `labels` and
                has no probabilities.
        """
        if isinstance(frames, Sequence) and not isinstance(frames, str):
            return self._predict(frames, color, confidence=confidence)
        return self._predict([frames], color, confidence=confidence)[0]

    def labels(self, frames: Sequence[ImageInput], *, color: str | None = None) -> list[Image]:
        """Return label maps (H, W) uint8, each at its frame's size.

        `frames` is a list of images; arguments and errors are those of `predict`.
        """
        return [result.labels for result in self._predict(frames, color, confidence=False)]

    def logits(
        self, frames: Sequence[ImageInput], *, color: str | None = None
    ) -> NDArray[np.float32]:
        """Return logits (B, K, h, w) float32 at the network's output resolution.

        `frames` is a list of images, as in `predict`. Raise `ModelError` if the model was exported
        with the head `labels`.
        """
        images = _to_images(frames, color)
        return np.concatenate([prediction.logits() for prediction in self._run(images)])

    def stream(
        self,
        *sources: SourceSpec | Sequence[SourceSpec],
        confidence: bool = False,
        on_error: Callable[[DataError], None] | None = None,
        timings: Timings | None = None,
    ) -> Generator[Result, None, None]:
        """Yield a `Result` for each frame of videos, images, folders, globs, cameras or streams.

        Files are read one after the other and lose no frame. Cameras and streams are read at the
        same time; `Result.source` tells them apart. Reading, inference and upsampling overlap in
        threads, which end when the generator ends. Iterate it in one thread; break, `close()`, or
        the method `stop` of a live source ends it. Files are opened by the call, cameras and
        streams by the first `next`.

        Few frames are on their way at any time, so that those of a camera are new even if the
        caller is slow; `time.monotonic() - result.captured` is their age.

        Args:
            sources: See `open_sources`.
            confidence: Also return the softmax probability of each pixel's class.
            on_error: Called with the error of each frame or file that cannot be read, or camera
                that fails; the others are still yielded. Without it the error is raised, which ends
                all sources.
            timings: Collects the time spent in each stage.

        Raises:
            DataError: A frame cannot be read, a source fails, or the only source does not exist.
            UsageError: The sources do not fit together.
            ModelError: The model is closed or fails.
        """
        opened = open_sources(sources)
        return self._stream(opened, confidence, on_error, timings or Timings())

    def _stream(
        self,
        sources: Sequence[Source],
        confidence: bool,
        on_error: Callable[[DataError], None] | None,
        timings: Timings,
    ) -> Generator[Result, None, None]:
        items = run_pipeline(
            sources, self.backend, batch=self.batch, confidence=confidence, timings=timings
        )
        live = {source.name: source for source in sources if isinstance(source, LiveSource)}
        with closing(items):
            for item in items:
                if isinstance(item, Result):
                    source = live.get(item.source)
                    if source is None or not source.refuses(item.captured, item.latency_s):
                        yield item
                elif isinstance(item, DataError):
                    if on_error is None:
                        raise item
                    on_error(item)

    def _predict(
        self, frames: Sequence[ImageInput], color: str | None, *, confidence: bool
    ) -> list[Result]:
        captured = time.monotonic()
        images = _to_images(frames, color)
        predictions = (batch[i] for batch in self._run(images) for i in range(len(batch)))
        results = []
        for index, ((frame, order), prediction) in enumerate(zip(images, predictions, strict=True)):
            size_hw = (frame.shape[0], frame.shape[1])
            results.append(
                Result(
                    labels=prediction.labels(size_hw)[0],
                    frame=frame,
                    space=self.space,
                    captured=captured,
                    confidence=prediction.confidence(size_hw)[0] if confidence else None,
                    latency_s=time.monotonic() - captured,
                    color=order,
                    index=index,
                )
            )
        return results

    def _run(self, images: Sequence[tuple[Image, str]]) -> Iterator[Prediction]:
        """Yield the predictions of `batch` images at a time."""
        size_hw = self.metadata.input_size_hw
        for start in range(0, len(images), self.batch):
            inputs = []
            for frame, order in images[start : start + self.batch]:
                resized = resize_frame(frame, size_hw)
                if order == "bgr":
                    resized = np.asarray(cv2.cvtColor(resized, cv2.COLOR_BGR2RGB), np.uint8)
                inputs.append(resized)
            yield self.backend.submit(np.stack(inputs))

    def close(self) -> None:
        """Release the backend and its memory."""
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _from_pil(pil_image: PilImage) -> Image:
    """Return a PIL image as `read_rgb` reads its file: upright, and of 8 bits."""
    from PIL import ImageOps

    image: Any = ImageOps.exif_transpose(cast("Any", pil_image))
    if image.mode.startswith("I;16"):
        gray = (np.asarray(image, np.uint16) >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, 2)
    if image.mode in ("I", "F"):
        raise UsageError(
            f"a PIL image of mode {image.mode} has no fixed range; convert it to RGB with values "
            "from 0 to 255"
        )
    return np.asarray(image.convert("RGB"), np.uint8)


def _to_images(frames: Sequence[ImageInput], color: str | None) -> list[tuple[Image, str]]:
    """Return each input as an image (H, W, 3) uint8 and its channel order."""
    order = None if color is None else str(color).lower()
    if order not in (None, *COLOR_ORDERS):
        raise UsageError(f"color must be 'rgb' or 'bgr', got {color!r}")
    # A text and an array of one image are sequences, too.
    if isinstance(frames, str | Path | Result) or getattr(frames, "ndim", 4) < 4:
        raise UsageError(f"expected a list of images, got one image ({type(frames).__name__})")
    if not isinstance(frames, Sequence | np.ndarray):
        raise UsageError(f"expected a list of images, got {type(frames).__name__}")
    if len(frames) == 0:
        raise UsageError("no image to segment; pass at least one")
    return [_to_image(frame, order) for frame in frames]


def _to_image(frame: ImageInput, order: str | None) -> tuple[Image, str]:
    if isinstance(frame, Result):
        return frame.frame, frame.color
    if isinstance(frame, str | Path):
        return read_rgb(Path(frame)), "rgb"
    # PIL is imported only by those who use it; plugins derive from its class.
    if any(base.__module__.partition(".")[0] == "PIL" for base in type(frame).__mro__):
        return _from_pil(cast("PilImage", frame)), "rgb"
    if not isinstance(frame, np.ndarray):
        raise UsageError(
            f"an image must be a NumPy array (H, W, 3), a path or a PIL image, got "
            f"{type(frame).__name__}; cv2.imread returns None for a file that it cannot read"
        )
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        raise UsageError(
            f"an image must be a uint8 array of shape (H, W, 3), got {frame.dtype} {frame.shape}"
        )
    if order is None:
        raise UsageError(
            "color is required for NumPy images: color='bgr' for images from OpenCV, "
            "color='rgb' for others"
        )
    return frame, order
