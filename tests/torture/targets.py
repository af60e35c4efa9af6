"""What the mutated files are given to; run as a program, it works through a range of mutations.

    python targets.py TARGET SEEDS FIRST COUNT PROGRESS

reads the seed files in the folder SEEDS, gives COUNT mutations from number FIRST to the target, and
writes the number of the current one to the file PROGRESS. A target may succeed or raise an error of
the package. Anything else ends the program with a traceback, and a target that takes longer than
`LIMIT_S` seconds ends it by a signal.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
from mutate import mutated

from fada_deploy.common.errors import FadaError

LIMIT_S = 20


def _label_image(path: Path) -> None:
    from fada_deploy.common.images import read_indices, size_without_orientation

    size_without_orientation(path)
    read_indices(path)


def _array(path: Path) -> None:
    from fada_deploy.common.images import read_indices

    read_indices(path.rename(path.with_suffix(".npy")))


def _frame(path: Path) -> None:
    from fada_deploy.common.images import read_rgb

    read_rgb(path)


def _video(path: Path) -> None:
    from fada_deploy.runtime.sources.videos import VideoSource

    with closing(VideoSource(path).frames()) as items:
        for _ in islice(items, 500):
            pass


def _dataset(path: Path) -> None:
    from fada_deploy.common.label_space import CITYSCAPES_19
    from fada_deploy.data import open_dataset

    folder = path.parent
    (folder / "images").mkdir(exist_ok=True)
    for name in ("a", "b"):
        (folder / "images" / f"{name}.png").touch()
    toml = path.rename(path.with_suffix(".toml"))
    dataset = open_dataset(str(toml), None, split="train", space=CITYSCAPES_19)
    if dataset.labeled:
        dataset.labels(0)


def _list(path: Path) -> None:
    from fada_deploy.data.pairing import find_pairs

    folder = path.parent
    for name in ("a/x", "b/x", "b/y"):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / f"{name}.png").touch()
    find_pairs(folder, "images/**/*.png", None, path.name, "mine.toml [splits.train]")


def _label_space(path: Path) -> None:
    from fada_deploy.common.label_space import load_label_space

    load_label_space(str(path.rename(path.with_suffix(".toml"))))


def _settings(path: Path) -> None:
    from fada_deploy.training.settings import make_config

    make_config(recipe=None, file=path, settings=[], options={"src": "gta5", "tgt": "cityscapes"})


def _run_settings(path: Path) -> None:
    from fada_deploy.training.run_files import load_config

    path.rename(path.parent / "config.json")
    load_config(path.parent)


def _metadata(path: Path) -> None:
    from fada_deploy.common.metadata import ModelMetadata

    ModelMetadata.from_json(path.read_bytes().decode(errors="replace"), "model.onnx")


def _sidecar(path: Path) -> None:
    from fada_deploy.runtime.backends.engine_file import EngineSidecar

    EngineSidecar.from_json(path.read_bytes(), "model.engine.json")


def _finished(path: Path) -> None:
    from fada_deploy.common.documents import read_json
    from fada_deploy.runtime.writers.finished import FinishedDocument

    read_json(path.read_bytes(), FinishedDocument, where="finished.json", remedy="delete it")


def _selection(path: Path) -> None:
    from fada_deploy.common.selection import read_selection

    path.rename(path.parent / "selection.json")
    read_selection(path.parent)


def _onnx(path: Path) -> None:
    from fada_deploy.inspection.describe import describe
    from fada_deploy.runtime.backends.onnx_file import read_model

    model = path.rename(path.with_suffix(".onnx"))
    describe(model)
    read_model(model)


def _weights(path: Path) -> None:
    from fada_deploy.training.weights.checkpoints import load_model

    load_model(path)


def _checkpoint(path: Path) -> None:
    from fada_deploy.training.weights.checkpoints import read_checkpoint

    read_checkpoint(path)


def _state(path: Path) -> None:
    import torch

    from fada_deploy.training.weights.checkpoints import load_state

    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    load_state(path, {"model": layer, "optimizer": optimizer})


def _reference(path: Path) -> None:
    from fada_deploy.runtime.parity import ReferenceOutputs

    ReferenceOutputs.load(path)


def _mask(path: Path) -> None:
    from fada_deploy.data.base import read_mask

    read_mask(path)


TARGETS: dict[str, Callable[[Path], None]] = {
    "label-image": _label_image,
    "array": _array,
    "frame": _frame,
    "mask": _mask,
    "video": _video,
    "dataset": _dataset,
    "list": _list,
    "label-space": _label_space,
    "settings": _settings,
    "run-settings": _run_settings,
    "metadata": _metadata,
    "sidecar": _sidecar,
    "finished": _finished,
    "selection": _selection,
    "onnx": _onnx,
    "weights": _weights,
    "checkpoint": _checkpoint,
    "state": _state,
    "reference": _reference,
}


def main() -> None:
    """Give a range of mutations to a target."""
    target, seeds_folder, first, count, progress = sys.argv[1:]
    # Numbers of the right form that overflow in a computation are no fault by themselves.
    np.seterr(all="ignore")
    seeds = [path.read_bytes() for path in sorted(Path(seeds_folder).iterdir())]
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for i in range(int(first), int(first) + int(count)):
        Path(progress).write_text(f"{i}")
        with _folder() as folder:
            path = folder / "input"
            path.write_bytes(mutated(seeds, target, i))
            signal.alarm(LIMIT_S)
            try:
                TARGETS[target](path)
            except FadaError as error:
                assert "\n" not in str(error), f"the message has several lines: {error}"
            signal.alarm(0)


class _folder:
    """A temporary folder; faster than tempfile's, which imports a clean-up at each exit."""

    def __enter__(self) -> Path:
        self.path = Path(tempfile.mkdtemp())
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def names() -> Iterator[str]:
    """Yield the names of the targets."""
    yield from TARGETS


if __name__ == "__main__":
    main()
