"""Build the built-in model: `python benchmarks/builtin_model.py CLIP.mp4 [--data MINE.toml]`.

Trains with `configs/builtin/run.toml` on rendered scenes and on the unlabeled frames of CLIP.mp4,
exports to int8 and writes `fada_deploy/models/driving-11.onnx`. With `--data`, prints the IoU on
labeled frames, which the training has not seen. A finished run in `--out` is not trained again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETTINGS = ROOT / "configs" / "builtin"
MODEL = ROOT / "fada_deploy" / "models" / "driving-11.onnx"


def fada(*arguments: object) -> None:
    """Run a `fada` command; end with its exit code if it fails."""
    words = [str(a) for a in arguments]
    print("$ fada", *words, flush=True)
    subprocess.run([sys.executable, "-m", "fada_deploy", *words], check=True)


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
    MODEL.parent.mkdir(exist_ok=True)
    MODEL.write_bytes(exported.read_bytes())
    print(f"{MODEL}: {MODEL.stat().st_size / 2**20:.2f} MiB")
    if arguments.data:
        fada("eval", run, "--data", arguments.data)
        fada("eval", MODEL, "--data", arguments.data)


if __name__ == "__main__":
    main()
