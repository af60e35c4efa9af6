"""Where labels go: overlay films and pictures, masks, color maps, arrays, fractions.

Every file is written under a temporary name and renamed when it is whole. Under the output folder
lies one folder a kind: `overlay/drive.mp4`, `mask/drive/000000.png`, `json/drive.json`; a single
picture gives `mask/photo.png`, a folder `mask/folder/photo.png`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.files import atomic_path
from fada_deploy.common.images import write_png
from fada_deploy.common.label_space import LabelSpace
from fada_deploy.common.video import BT709
from fada_deploy.runtime.overlay.blend import colorize
from fada_deploy.runtime.overlay.renderer import OverlayRenderer
from fada_deploy.runtime.overlay.style import OverlayStyle
from fada_deploy.runtime.pipeline import Timings, run_pipeline
from fada_deploy.runtime.result import Result
from fada_deploy.runtime.segmenter import Segmenter
from fada_deploy.runtime.sources.base import Source, SourceEnd
from fada_deploy.runtime.writers.video_writer import PRESETS, film, label_video

if TYPE_CHECKING:
    from av import VideoFrame

Picture = NDArray[np.uint8]
Item = Result | DataError | SourceEnd
IDS: dict[str, Callable[[LabelSpace], NDArray[np.uint8]]] = {
    "trainId": lambda space: space.to_train_ids,
    "labelId": lambda space: space.to_label_ids,
}
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class SaveOptions:
    """What to save and how it looks.

    `kinds` are keys of `OUTPUTS`, `ids` a key of `IDS` for the masks. `preset` is x264's: from the fastest, which
    makes the largest files, to the slowest. `hardware`, a key of `HARDWARE`, writes films for people in its place.
    """

    out: Path
    kinds: tuple[str, ...] = ("overlay",)
    ids: str = "trainId"
    look: OverlayStyle = field(default_factory=OverlayStyle)
    preset: str = PRESETS[0]
    hardware: str | None = None

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in OUTPUTS:
                raise UsageError(f"cannot save {kind!r}; there are {', '.join(OUTPUTS)}")
        if self.ids not in IDS:
            raise UsageError(f"no ids {self.ids!r}; there are {', '.join(IDS)}")
        if self.preset not in PRESETS:
            raise UsageError(f"no preset {self.preset!r}; there are {', '.join(PRESETS)}")


@dataclass(frozen=True)
class Drawn:
    """A result with its overlay, where one is wanted."""

    result: Result
    picture: Picture | VideoFrame | None


@dataclass(frozen=True)
class Opening:
    """What a sink knows when its source's first result is there. `key` is the source's name in files."""

    source: Source
    key: str
    first: Drawn
    saving: SaveOptions

    @property
    def space(self) -> LabelSpace:
        return self.first.result.space

    @property
    def pixel_aspect(self) -> Fraction | None:
        """A pixel's width by its height, where the source says it."""
        return self.source.pixel_aspect

    def path(self, kind: str, suffix: str, result: Result | None = None) -> Path:
        """Return the file of a result, or without one, the file of the whole source."""
        item = result.item if result is not None else ""
        return (
            self.saving.out / kind / self.key / f"{item}{suffix}"
            if item
            else self.whole(kind, suffix)
        )

    def whole(self, kind: str, suffix: str) -> Path:
        return self.saving.out / kind / f"{self.key}{suffix}"


Write = Callable[[Drawn], None]


@contextmanager
def _overlay(opening: Opening) -> Iterator[Write]:
    if opening.source.is_video:
        with _film(opening, "overlay", _picture, audio=opening.source.audio) as write:
            yield write
    else:
        yield lambda drawn: _write_jpeg(
            opening.path("overlay", ".jpg", drawn.result), drawn.picture
        )


@contextmanager
def _mask(opening: Opening) -> Iterator[Write]:
    ids = _ids(opening)
    yield lambda d: write_png(opening.path("mask", ".png", d.result), ids(d))


@contextmanager
def _mask_film(opening: Opening) -> Iterator[Write]:
    first, ids = opening.first.result, _ids(opening)
    assert first.time_base is not None
    path, size = opening.whole("mask-video", ".mp4"), (first.labels.shape[0], first.labels.shape[1])
    with label_video(
        path,
        size,
        time_base=first.time_base,
        rate=opening.source.rate,
        pixel_aspect=opening.pixel_aspect,
    ) as add:
        yield lambda drawn: add(ids(drawn), _pts(drawn))


@contextmanager
def _color(opening: Opening) -> Iterator[Write]:
    color = _colors(opening)
    yield lambda d: write_png(opening.path("color", ".png", d.result), color(d))


@contextmanager
def _color_film(opening: Opening) -> Iterator[Write]:
    with _film(opening, "color-video", _colors(opening), audio=None) as write:
        yield write


@contextmanager
def _npz(opening: Opening) -> Iterator[Write]:
    names = np.array(opening.space.names)

    def write(drawn: Drawn) -> None:
        arrays: dict[str, Any] = {"labels": drawn.result.labels, "classes": names}
        if drawn.result.confidence is not None:
            # Half precision tells 0.999 from 1; the rest of the digits are noise.
            arrays["confidence"] = drawn.result.confidence.astype(np.float16)
        with atomic_path(opening.path("npz", ".npz", drawn.result)) as temporary:
            np.savez_compressed(temporary, **arrays)

    yield write


@contextmanager
def _json(opening: Opening) -> Iterator[Write]:
    space = opening.space
    head = json.dumps({"source": opening.source.name, "classes": list(space.names)})
    with (
        atomic_path(opening.whole("json", ".json")) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        # One line a frame as it comes: a film of any length takes no memory.
        file.write(head[:-1] + ', "frames": [')
        comma = "\n"

        def write(drawn: Drawn) -> None:
            nonlocal comma
            result = drawn.result
            frame = {"index": result.index, "item": result.item, "time_s": result.time_s}
            file.write(
                comma
                + json.dumps(frame | {"fractions": {n: round(v, 6) for n, v in result.fractions.items() if v > 0}})
            )
            comma = ",\n"

        yield write
        file.write("\n]}\n")


OUTPUTS: dict[str, Callable[[Opening], AbstractContextManager[Write]]] = {
    "overlay": _overlay,
    "mask": _mask,
    "mask-video": _mask_film,
    "color": _color,
    "color-video": _color_film,
    "npz": _npz,
    "json": _json,
}


def _picture(drawn: Drawn) -> Picture | VideoFrame:
    assert drawn.picture is not None
    return drawn.picture


def _pts(drawn: Drawn) -> int:
    assert drawn.result.pts is not None
    return drawn.result.pts


def _ids(opening: Opening) -> Callable[[Drawn], Picture]:
    table = IDS[opening.saving.ids](opening.space)
    return lambda drawn: np.asarray(cv2.LUT(drawn.result.labels, table), np.uint8)


def _colors(opening: Opening) -> Callable[[Drawn], Picture]:
    palette = opening.space.palette
    return lambda drawn: colorize(drawn.result.labels, palette)


@contextmanager
def _film(
    opening: Opening, kind: str, picture_of: Callable[[Drawn], Any], audio: Path | None
) -> Iterator[Write]:
    base, first = opening.first.result.time_base, picture_of(opening.first)
    assert base is not None
    if isinstance(first, np.ndarray):
        size, matrix = (first.shape[0], first.shape[1]), BT709
    else:
        size, matrix = (first.height, first.width), int(first.colorspace)
    saving = opening.saving
    with film(
        opening.whole(kind, ".mp4"), size, time_base=base, rate=opening.source.rate, audio=audio,
        preset=saving.preset, matrix=matrix, pixel_aspect=opening.pixel_aspect, hardware=saving.hardware,
    ) as add:  # fmt: skip
        yield lambda drawn: add(picture_of(drawn), _pts(drawn))


def _write_jpeg(path: Path, picture: Any) -> None:
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    ok, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not ok:
        raise DataError(f"{path}: a picture of shape {picture.shape} cannot be written as JPEG")
    with atomic_path(path) as temporary:
        data.tofile(temporary)


def _draw(
    items: Iterable[Item], drawing: OverlayRenderer, saving: SaveOptions, timings: Timings
) -> Generator[Drawn | DataError | SourceEnd, None, None]:
    for item in items:
        if not isinstance(item, Result) or "overlay" not in saving.kinds:
            if isinstance(item, SourceEnd):
                drawing.forget(item.source.name)
            yield Drawn(item, None) if isinstance(item, Result) else item
            continue
        with timings.clock("draw"):
            picture = drawing.draw_for_film(item)
        yield Drawn(item, picture)


def _write(
    items: Iterable[Drawn | DataError | SourceEnd],
    sources: Sequence[Source],
    saving: SaveOptions,
    timings: Timings,
) -> Generator[Item, None, None]:
    keys = output_names(sources)
    by_name = {source.name: source for source in sources}
    # Whatever ends this generator early unwinds the stacks, which drop what is not whole.
    with ExitStack() as everything:
        opened: dict[str, tuple[ExitStack, list[Write]]] = {}
        for item in items:
            with timings.clock("write"), _said_in_one_line(saving.out):
                if isinstance(item, Drawn):
                    name = item.result.source
                    if name not in opened:
                        opening = Opening(by_name[name], keys[name], item, saving)
                        stack = everything.enter_context(ExitStack())
                        opened[name] = (
                            stack,
                            [stack.enter_context(OUTPUTS[k](opening)) for k in saving.kinds],
                        )
                    for write in opened[name][1]:
                        write(item)
                elif isinstance(item, SourceEnd) and item.source.name in opened:
                    opened.pop(item.source.name)[0].close()
            yield item.result if isinstance(item, Drawn) else item


@contextmanager
def _said_in_one_line(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename or out}: cannot be written ({error.strerror or error})"
        ) from None


def output_names(sources: Iterable[Source]) -> Mapping[str, str]:
    """Return each source's name in files, by its own name: its stem, numbered where two share one."""
    keys: dict[str, str] = {}
    taken: set[str] = set()
    for source in sources:
        path = Path(source.name)
        stem = (path.resolve().name if path.is_dir() else path.stem) or "source"
        key, number = stem, 2
        while key in taken:
            key, number = f"{stem}-{number}", number + 1
        keys[source.name] = key
        taken.add(key)
    return keys


def save_results(
    segmenter: Segmenter,
    sources: Sequence[Source],
    saving: SaveOptions,
    *,
    timings: Timings | None = None,
) -> Generator[Item, None, None]:
    """Label all sources into files; yield each `Result` once it is written, and what could not be read.

    An `SourceEnd` says that a source's files lie under their names. A generator that is closed, abandoned
    or interrupted leaves finished files and no others. Raise `UsageError` for a source that lies where
    its own product would be written.
    """
    for source in sources:
        for kind in saving.kinds:
            if Path(source.name).resolve().parent == (saving.out / kind).resolve():
                raise UsageError(
                    f"{source.name}: lies where its own {kind} is written; give another --out"
                )
        if not source.is_video:
            for kind in sorted({"mask-video", "color-video"} & set(saving.kinds)):
                raise UsageError(
                    f"{source.name}: pictures make no film; save {kind.removesuffix('-video')} instead"
                )
    clock, drawing = timings or Timings(), OverlayRenderer(saving.look, segmenter.space)
    return run_pipeline(
        sources,
        segmenter.backend,
        batch=segmenter.batch,
        confidence="npz" in saving.kinds and segmenter.metadata.head == "logits",
        timings=clock,
        then={
            "draw": lambda items: _draw(items, drawing, saving, clock),
            "write": lambda items: _write(items, sources, saving, clock),
        },
    )
