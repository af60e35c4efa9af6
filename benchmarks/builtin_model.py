"""Build the built-in model: `python benchmarks/builtin_model.py CLIP.mp4 [--data MINE.toml]`.

Trains with `configs/builtin/run.toml` on rendered scenes and on the unlabeled frames of CLIP.mp4,
exports to int8 and writes `fada_deploy/models/driving-11.onnx`. The paths in the settings that the
file records are shortened to names. With `--data`, prints the IoU on labeled frames, which the
training has not seen. A finished run in `--out` is not trained again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fada_deploy.export.onnx_metadata import replace_metadata
from fada_deploy.runtime.backends.onnx_file import read_metadata

ROOT = Path(__file__).parents[1]
SETTINGS = ROOT / "configs" / "builtin"
MODEL = ROOT / "fada_deploy" / "models" / "driving-11.onnx"


def fada(*arguments: object) -> None:
    """Run a `fada` command; end with its exit code if it fails."""
    words = [str(a) for a in arguments]
    print("$ fada", *words, flush=True)
    subprocess.run([sys.executable, "-m", "fada_deploy", *words], check=True)


def without_folders(value: Any) -> Any:
    """Return a JSON document in which every absolute path is replaced by its last part."""
    if isinstance(value, Mapping):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return value


def main() -> None:
    """Train, export and write the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/builtin"))
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()
    run = arguments.out
    if (run / "config.json").is_file():
        fada("train", "--resume", run)
    else:
        fada(
            "train", "--config", SETTINGS / "run.toml", "--tgt", arguments.clip,
            "--out", run,
        )  # fmt: skip
    fada("export", run, "--precision", "int8", "--hardware-target", "cpu")
    exported = run / "export" / "model.int8-cpu.onnx"
    metadata = read_metadata(exported)
    provenance = without_folders(json.loads(json.dumps(dict(metadata.provenance))))
    MODEL.parent.mkdir(exist_ok=True)
    MODEL.write_bytes(exported.read_bytes())
    replace_metadata(MODEL, replace(metadata, provenance=provenance))
    print(f"{MODEL}: {MODEL.stat().st_size / 2**20:.2f} MiB")
    if arguments.data:
        fada("eval", run, "--data", arguments.data)
        fada("eval", MODEL, "--data", arguments.data)


if __name__ == "__main__":
    main()
