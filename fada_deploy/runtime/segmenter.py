"""The runtime's front door: open a model, label frames.

```python
from fada_deploy.runtime import Segmenter

with Segmenter("model.onnx") as segmenter:
    for result in segmenter.stream("drive.mp4"):
        show(result.labels, result.overlay())
```
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self, overload

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import (
    DataError,
    DeviceError,
    FadaError,
    MissingExtraError,
    ModelError,
    ToleranceError,
    UsageError,
)
from fada_deploy.common.label_space import LabelSpace
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.common.runs import exported_model
from fada_deploy.runtime.backend_selection import backends_of, open_backend, require_any_backend
from fada_deploy.runtime.backends import BACKENDS, Backend, Prediction
from fada_deploy.runtime.kernels.resize import resize_frame
from fada_deploy.runtime.pipeline import Timings, results_of
from fada_deploy.runtime.result import Result
from fada_deploy.runtime.sources.base import Source
from fada_deploy.runtime.sources.open import Given, open_sources

Frame = NDArray[np.uint8]


class Segmenter:
    """A model that labels frames of any size; safe to share between threads.

    `model` is an exported file or the folder of a run that has one; None takes the newest export under `runs/`
    that this machine can run, and `skipped` then says which newer ones it cannot, and why. `device` is auto, cpu
    or cuda[:N]; `backend` auto or a name in `BACKENDS`. `batch` frames go through the network at once;
    None means the file's own fixed batch, else 1. `parallel` such batches share a CPU's cores: 1 answers each
    the soonest, `throughput_parallelism()` of them a film. `allow_unverified` opens an engine that nobody has compared
    with the network and that lies without its reference outputs.
    """

    backend: Backend
    skipped: tuple[str, ...]

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        device: str = "auto",
        backend: str = "auto",
        batch: int | None = None,
        parallel: int = 1,
        allow_unverified: bool = False,
    ) -> None:
        if batch is not None and batch < 1:
            raise UsageError(f"a batch of {batch} is none; it is at least 1")
        if parallel < 1:
            raise UsageError(f"{parallel} requests in parallel are none; it is at least 1")

        def opened(path: Path) -> Backend:
            return open_backend(
                path,
                device=device,
                backend=backend,
                parallel=parallel,
                allow_unverified=allow_unverified,
            )

        if model is None:
            self.path, self.backend, self.skipped = _open_newest(opened, backend)
        else:
            self.path, self.skipped = exported_model(Path(model)), ()
            self.backend = opened(self.path)
        fixed = self.metadata.batch
        self.batch = min(batch or fixed or 1, fixed or batch or 1)

    @property
    def metadata(self) -> ModelMetadata:
        return self.backend.metadata

    @property
    def space(self) -> LabelSpace:
        return self.metadata.label_space

    @overload
    def predict(self, frames: Frame, *, color: str = "rgb", confidence: bool = False) -> Result: ...

    @overload
    def predict(
        self, frames: Sequence[Frame], *, color: str = "rgb", confidence: bool = False
    ) -> list[Result]: ...

    def predict(
        self, frames: Frame | Sequence[Frame], *, color: str = "rgb", confidence: bool = False
    ) -> Result | list[Result]:
        """Label one frame (H, W, 3) uint8, or several of any sizes, given in the order `color`.

        Raise `UsageError` for what is no such frame.
        """
        if frames is None or (isinstance(frames, np.ndarray) and frames.ndim != 4):
            return self._predict([frames], color, confidence=confidence)[0]
        return self._predict(list(frames), color, confidence=confidence)

    def _predict(self, frames: list[Frame], color: str, *, confidence: bool) -> list[Result]:
        captured = time.monotonic()
        results = []
        predictions = (p[i] for p in self._run(frames, color) for i in range(len(p)))
        for index, (frame, prediction) in enumerate(zip(frames, predictions, strict=True)):
            size = frame.shape[:2]
            labels = prediction.labels(size)[0]
            sure = prediction.confidence(size)[0] if confidence else None
            latency = time.monotonic() - captured
            results.append(
                Result(
                    labels,
                    frame,
                    self.space,
                    captured,
                    latency,
                    color=color,
                    index=index,
                    confidence=sure,
                )
            )
        return results

    def labels(self, frames: Sequence[Frame], *, color: str = "rgb") -> list[NDArray[np.uint8]]:
        """Return label maps (H, W) uint8, each at its frame's own size: the `Predict` of `evaluate`."""
        return [result.labels for result in self._predict(list(frames), color, confidence=False)]

    def logits(self, frames: Sequence[Frame], *, color: str = "rgb") -> NDArray[np.float32]:
        """Return (B, K, h, w) float32 at the network's own resolution; raise `ModelError` for head `labels`."""
        return np.concatenate([p.logits() for p in self._run(list(frames), color)])

    def stream(
        self,
        *sources: Given | Sequence[Given],
        confidence: bool = False,
        on_error: Callable[[DataError], None] | None = None,
        timings: Timings | None = None,
    ) -> Iterator[Result]:
        """Yield a `Result` for each frame of videos, images, folders or globs, in order.

        Streams, cameras (by number) and a list of them are read at the same time: a `Result` says by its `source`
        whose it is, and one that is dead holds nobody up. Up to `batch` of what lies ready go through together.

        Reading, network and upsampling overlap in threads that end when the generator does, however it
        does: run out, closed, abandoned or interrupted. A picture that cannot be read is handed to
        `on_error`, and the others go on; without `on_error` it is raised. So are all other failures.
        """
        opened = open_sources(sources)
        return self._stream(opened, confidence, on_error, timings or Timings())

    def _stream(
        self,
        sources: Sequence[Source],
        confidence: bool,
        on_error: Callable[[DataError], None] | None,
        timings: Timings,
    ) -> Iterator[Result]:
        results = results_of(
            sources, self.backend, batch=self.batch, confidence=confidence, timings=timings
        )
        with closing(results) as items:
            for item in items:
                if isinstance(item, Result):
                    yield item
                elif isinstance(item, DataError):
                    if on_error is None:
                        raise item
                    on_error(item)

    def _run(self, frames: list[Frame], color: str) -> Iterator[Prediction]:
        """Yield predictions for `batch` frames at a time."""
        if color not in ("rgb", "bgr"):
            raise UsageError(f"no color order {color!r}; there are rgb and bgr")
        if not frames:
            raise UsageError("no frame to label; give at least one of shape (H, W, 3)")
        for frame in frames:
            if not isinstance(frame, np.ndarray):
                raise UsageError(
                    f"a frame is a NumPy array (H, W, 3), not {type(frame).__name__}; was it read?"
                )
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
                raise UsageError(
                    f"a frame is uint8 of shape (H, W, 3), not {frame.dtype} {frame.shape}"
                )
        for start in range(0, len(frames), self.batch):
            pictures = [
                resize_frame(f, self.metadata.input_size_hw)
                for f in frames[start : start + self.batch]
            ]
            if color == "bgr":
                pictures = [
                    np.asarray(cv2.cvtColor(p, cv2.COLOR_BGR2RGB), np.uint8) for p in pictures
                ]
            yield self.backend.submit(np.stack(pictures))

    def close(self) -> None:
        """Let the engine go."""
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _open_newest(
    open_model: Callable[[Path], Backend], backend: str
) -> tuple[Path, Backend, tuple[str, ...]]:
    """Open the newest export that opens; say why each newer one does not."""
    from fada_deploy.common.runs import newest_models

    if backend == "auto":
        # Without an engine no model runs, and that is the thing to say first.
        require_any_backend()
    errors: list[FadaError] = []
    skipped: list[str] = []
    for path in newest_models():
        if backend in BACKENDS and backend not in backends_of(path):
            skipped.append(f"{path}: is not for backend {backend}")
            continue
        try:
            opened = open_model(path)
            if opened.device == "cpu" and opened.metadata.hardware_target == "tensorrt":
                opened.close()
                raise ModelError(
                    f"{path}: is quantized for TensorRT, and slow on a CPU; name it to run it here"
                )
            return path, opened, tuple(skipped)
        except (ModelError, DeviceError, ToleranceError, MissingExtraError) as error:
            errors.append(error)
            # Most messages begin with the path already.
            skipped.append(f"{path}: {str(error).removeprefix(f'{path}: ')}")
    if not errors and skipped:
        raise ModelError(
            f"no model under runs/ is for backend {backend}; type `fada export` first, or leave it out"
        )
    if not errors:
        raise ModelError("no model under runs/: type `fada export` first, or give --model PATH")
    if len(errors) == 1:
        raise errors[0]
    raise ModelError(
        f"none of the {len(skipped)} models under runs/ can run here: {'; '.join(skipped)}"
    )
