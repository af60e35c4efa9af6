"""Build the built-in model: `python benchmarks/builtin_model.py CLIP.mp4 [--data MINE.toml]`.

Trains on rendered scenes (`configs/builtin/source.toml`), then also on the unlabeled frames of
CLIP.mp4 (`selftrain.toml`), exports to int8 and writes `fada_deploy/models/driving-11.onnx` and its
reference outputs. With `--data`, prints the IoU on labeled frames, which the training has not seen.
Finished runs in `--out` are not trained again. Without CLIP.mp4, only the reference outputs are
written again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np

from fada_deploy.common.files import sha256
from fada_deploy.export.exporter import make_reference_outputs
from fada_deploy.export.onnx_metadata import replace_metadata
from fada_deploy.runtime.backends.onnx_file import read_metadata
from fada_deploy.runtime.parity import reference_path
from fada_deploy.training.weights.builtin import load_builtin

ROOT = Path(__file__).parents[1]
SETTINGS = ROOT / "configs" / "builtin"
SAMPLE = ROOT / "fada_deploy" / "samples" / "street.mp4"
MODEL = ROOT / "fada_deploy" / "models" / "driving-11.onnx"


def fada(*arguments: object) -> None:
    """Run a `fada` command; end with its exit code if it fails."""
    words = [str(a) for a in arguments]
    print("$ fada", *words, flush=True)
    subprocess.run([sys.executable, "-m", "fada_deploy", *words], check=True)


def train(settings: str, clip: Path, run: Path, *options: object) -> None:
    """Train a run with the settings of a file, or continue it."""
    if (run / "config.json").is_file():
        fada("train", "--resume", run)
    else:
        fada("train", "--config", SETTINGS / settings, "--tgt", clip, "--out", run, *options)


def write_reference() -> None:
    """Write the reference outputs of the built-in file, and their hash into the file.

    They are those of the float network that has the weights of the file, for one frame of the
    sample video: two would exceed the 4 MB of the built-in model.
    """
    metadata = read_metadata(MODEL)
    with av.open(str(SAMPLE)) as container:
        frame = np.asarray(next(container.decode(video=0)).to_ndarray(format="rgb24"), np.uint8)
    model, _ = load_builtin()
    reference, _ = make_reference_outputs(model, [frame])
    path = reference_path(MODEL)
    reference.save(path)
    hashes = {**metadata.hashes, "reference": sha256(path)}
    replace_metadata(MODEL, replace(metadata, hashes=hashes))
    print(f"{path}: {path.stat().st_size / 2**20:.2f} MiB")


def main() -> None:
    """Train, export and write the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, default=Path("runs/builtin"))
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()
    if arguments.clip is None:
        if len(sys.argv) > 1:
            parser.error("CLIP.mp4 is missing")
        write_reference()
        return
    source, run = arguments.out / "source", arguments.out / "selftrain"
    train("source.toml", arguments.clip, source)
    train("selftrain.toml", arguments.clip, run, "--start", source)
    fada("export", run, "--precision", "int8", "--hardware-target", "cpu")
    exported = run / "export" / "model.int8-cpu.onnx"
    MODEL.parent.mkdir(exist_ok=True)
    MODEL.write_bytes(exported.read_bytes())
    print(f"{MODEL}: {MODEL.stat().st_size / 2**20:.2f} MiB")
    write_reference()
    if arguments.data:
        fada("eval", source, "--data", arguments.data)
        fada("eval", run, "--data", arguments.data)
        fada("eval", MODEL, "--data", arguments.data)


if __name__ == "__main__":
    main()
