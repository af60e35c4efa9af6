"""Every parser survives mutated files: one line or success, no crash, no hang.

`make torture` gives thousands of mutations to each target, `make test` a few dozen. A failure names
the target and the number of the mutation, which `targets.py` repeats.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
import toy
from targets import TARGETS

from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.runtime.backends.onnx_file import read_metadata
from fada_deploy.runtime.parity import ReferenceOutputs
from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel
from fada_deploy.training.settings import make_config
from fada_deploy.training.weights.checkpoints import save_state, save_weights

FOLDER = Path(__file__).parent
# 1 in `make test`; `make torture` sets it to 100.
FACTOR = int(os.environ.get("FADA_TORTURE", "1"))
SLOW = {"video", "weights", "onnx", "state", "checkpoint"}
TOML = {
    "dataset": """[labels]
encoding = "mapping"
values = { 1 = "building", 7 = "road" }
[splits.train]
images = "images/*.png"
labels = "images/{stem}.png"
list = "train.txt"
""",
    "label-space": 'name = "mine"\nclasses = ["road", { name = "tram", trainId = 19, labelId = 34, '
    'color = [1, 2, 3], includes = ["bus"] }]\n',
    "settings": 'recipe = "small"\nseed = 3\nsize = "96x64"\n[source]\nlr = 1e-3\niterations = 5\n'
    "[[extra_sources]]\nname = 'rendered'\nweight = 2.0\n",
    "list": "a/x.png\nb/x\nimages/b/y.png images/a/x.png\n# comment\n",
}


def _images() -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 20, (24, 32), dtype=np.uint8)
    for suffix, image in (
        (".png", labels), (".png", labels.astype(np.uint16)), (".png", np.dstack([labels] * 4)),
        (".bmp", labels), (".tiff", labels), (".webp", np.dstack([labels] * 3)),
        (".jpg", np.dstack([labels, labels, labels])),
    ):  # fmt: skip
        yield cv2.imencode(suffix, image)[1].tobytes()
    from fada_deploy.synth.palette_png import write_palette_png

    path = Path("palette.png")
    write_palette_png(path, labels, np.zeros((256, 3), np.uint8))
    yield path.read_bytes()


def _videos(folder: Path) -> Iterator[bytes]:
    images = [toy.scene(i)[0] for i in range(12)]
    for name in ("v.mp4", "v.mkv", "v.ts", "v.avi", "v.mov"):
        yield toy.write_video(folder / name, images).read_bytes()
    yield toy.write_video(folder / "s.mp4", images, audio=True).read_bytes()
    with av.open(str(folder / "a.gif"), "w") as container:
        stream = container.add_stream("gif", rate=5)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "rgb8"
        for image in images:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="rgb8")))
        container.mux(stream.encode(None))
    yield (folder / "a.gif").read_bytes()


def _documents(folder: Path, target: str) -> Iterator[bytes]:
    metadata = read_metadata(toy.color_model(folder / "toy.onnx"))
    settings = make_config(
        recipe="small", file=None, settings=[], options={"src": "gta5", "tgt": "cityscapes"}
    )
    candidate = {
        "name": "source", "stage": "source", "iteration": 4, "weights": "source/weights.safetensors"
    }  # fmt: skip
    documents = {
        "metadata": metadata.to_dict(),
        "run-settings": settings.to_dict(),
        "finished": {"schema": 1, "settings": {"ids": "trainId"}, "sources": {"/a.mp4": "1 files"}},
        "selection": {"schema": 1, "chosen": 0, "candidates": [candidate]},
        "sidecar": {"schema": 1, "metadata": metadata.to_dict(), "sha256": "0" * 64},
    }
    assert isinstance(metadata, ModelMetadata)
    yield json.dumps(documents[target], indent=1).encode()


def _tensors(folder: Path, target: str) -> Iterator[bytes]:
    path = folder / target
    if target == "weights":
        spec = ModelSpec("segformer-b0", CITYSCAPES_19, (64, 64), "batch")
        model = SegmentationModel(spec)
        small = {name: t[:1].clone() for name, t in model.state_dict().items() if t.ndim}
        save_weights(path, small, spec, {"stage": "source"})
    elif target == "state":
        layer = torch.nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(layer.parameters())
        layer(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        save_state(path, 3, {"model": layer, "optimizer": optimizer})
    elif target == "checkpoint":
        torch.save({"iteration": 1, "feature_extractor": {"module.a": torch.ones(3)}}, path)
    elif target == "array":
        path = folder / "a.npy"
        np.save(path, np.arange(12).reshape(3, 4))
    else:
        path = folder / "r.npz"
        frames = np.zeros((1, 4, 6, 3), np.uint8)
        ReferenceOutputs(frames, np.zeros((1, 3, 2, 3), np.float32), frames[..., 0]).save(path)
    yield path.read_bytes()


def write_seeds(target: str, folder: Path) -> Path:
    """Write the seed files of a target and return their folder."""
    if target in TOML:
        contents = iter([TOML[target].encode()])
    elif target in ("label-image", "frame", "mask"):
        contents = _images()
    elif target == "video":
        contents = _videos(folder)
    elif target == "onnx":
        contents = iter([toy.color_model(folder / "toy.onnx").read_bytes()])
    elif target in ("metadata", "run-settings", "finished", "selection", "sidecar"):
        contents = _documents(folder, target)
    else:
        contents = _tensors(folder, target)
    seeds = folder / "seeds"
    seeds.mkdir()
    for i, content in enumerate(contents):
        (seeds / f"{i:02d}").write_bytes(content)
    return seeds


@pytest.mark.parametrize("target", TARGETS)
def test_mutated_files(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seeds, progress = write_seeds(target, tmp_path), tmp_path / "progress"
    count = FACTOR * (10 if target in SLOW else 30)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = subprocess.run(
        [
            sys.executable, FOLDER / "targets.py", target, seeds, "0", str(count), progress,
        ],
        capture_output=True, text=True, errors="replace", check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    last = int(progress.read_text()) if progress.is_file() else -1
    assert done.returncode == 0, (
        f"{target}: mutation {last} ended with {done.returncode}\n{done.stderr[-3000:]}"
    )
    assert last == count - 1 and "Traceback" not in done.stderr
