"""`fada export`: the newest run → ONNX files and engines, each proven against the network."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fada_deploy.cli.options import SIZE, emit_json, log, newest

if TYPE_CHECKING:
    from fada_deploy.common.errors import GateError
    from fada_deploy.export.derive import Calibration, Derived, Gate

_ORDER = ("fp32", "fp16", "bf16", "int8")


@click.command("export")
@click.argument("source", required=False, type=click.Path(path_type=Path))
@click.option(
    "--head",
    type=click.Choice(["logits", "labels"]),
    default="logits",
    show_default=True,
    help="logits: fastest with this runtime; labels: upsampling and arg max inside, for other callers.",
)
@click.option("--size", type=SIZE, help="The network's input [as trained].")
@click.option("--batch", default="dynamic", show_default=True, help="dynamic, or a fixed number of frames.")
@click.option("--precision", default="fp32", show_default=True, help="Comma-separated: fp32, fp16, bf16, int8.")
@click.option(
    "--for",
    "made_for",
    type=click.Choice(["cpu", "tensorrt", "both"]),
    default="both",
    show_default=True,
    help="Whom int8 is quantised for.",
)
@click.option(
    "--calibration", default="percentile", show_default=True, help="Of int8: minmax, percentile or entropy."
)
@click.option(
    "--calibration-frames", type=click.IntRange(2), default=64, show_default=True, help="Target frames for int8."
)
@click.option("--leave-out", default="auto", show_default=True, help="Layers that int8 leaves in float.")
@click.option("--frames", type=click.Path(path_type=Path), help="Pictures or video in place of the run's target.")
@click.option("--data", help="Labelled data set that judges other precisions than fp32 too.")
@click.option("--data-root", type=click.Path(path_type=Path), help="Where --data lies.")
@click.option("--max-miou-drop", type=float, default=2.0, show_default=True, help="Points on --data.")
@click.option("--min-equal", type=float, help="Percent of labels that must equal the network's.")
@click.option("--max-logit-error", type=float, help="Largest logit error, of the largest logit.")
@click.option("--trt", is_flag=True, help="Build an engine of each precision, with TensorRT or TensorRT-RTX.")
@click.option(
    "--trt-flavour", type=click.Choice(["auto", "tensorrt", "tensorrt_rtx"]), default="auto", show_default=True
)
@click.option("--trt-batch", default="1,1,8", show_default=True, help="Smallest, usual and largest batch.")
@click.option("--trt-level", type=click.IntRange(0, 5), default=3, show_default=True, help="Builder's level.")
@click.option("--trt-workspace", type=click.IntRange(1), help="MiB that the builder may use [its own default].")
@click.option("--trt-timing-cache", type=click.Path(path_type=Path), help="Kept file [in the user's cache].")
@click.option("--compute-capability", multiple=True, help="RTX: GPU to build for, e.g. SM89; may be repeated.")
@click.option("--version-compatible", is_flag=True, help="TensorRT: runs on later versions too.")
@click.option("--hardware-compatible", is_flag=True, help="TensorRT: runs on other GPUs (Ampere and later) too.")
@click.option("--triton", type=click.Path(path_type=Path), help="Write a Triton model repository to this folder.")
@click.option("--list", "list_targets", is_flag=True, help="Say what can be built, proven and run here.")
@click.option("--out", type=click.Path(path_type=Path), help="The file to write [RUN/export/model.onnx].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def command(source: Path | None, list_targets: bool, as_json: bool, **options: Any) -> None:
    """Turn SOURCE into proven files: a run's folder, a stage's, a weights file, or an fp32 .onnx [the newest run].

    \b
    fada export                                         # model.onnx
    fada export --precision fp16,int8 --data mine.toml  # and others, gated
    fada export model.onnx --trt                        # an engine, without torch and the run

    Nothing is written unless every backend here that can run it gives the network's own answers on real frames.
    """
    if list_targets:
        from fada_deploy.export.targets import table, targets

        found = targets()
        return emit_json([t.to_dict() for t in found]) if as_json else click.echo(table(found))
    plan = _Plan(source=source, options=options)
    plan.run()
    if as_json:
        emit_json(plan.document)
    plan.finish()
    return None


@dataclass
class _Plan:
    """One call: the fp32 file, the precisions made of it, their engines, a repository of the last."""

    source: Path | None
    options: dict[str, Any]
    document: dict[str, Any] = field(default_factory=dict)
    refused: list[GateError] = field(default_factory=list)

    def run(self) -> None:
        """Check what was asked for, then make all of it; a refused file does not stop the others."""
        from fada_deploy.common.errors import UsageError

        wanted = self._wanted()
        if self.source is not None and self.source.suffix == ".onnx":
            if not (self.options["trt"] or self.options["triton"] or wanted != [("fp32", "any")]):
                raise UsageError(f"{self.source}: is exported already; say --precision, --trt or --triton")
            base, self.document["model"] = self.source, str(self.source)
        else:
            base = self._base()
        made, engines = [base], []
        if others := [each for each in wanted if each[0] != "fp32"]:
            calibration, allowed = self._calibration(base), self._gate(base)
            for precision, made_for in others:
                with self._collecting():
                    made.append(self._derive(base, precision, made_for, calibration, allowed))
        for path in made:
            if self._for_engine(path, wanted):
                with self._collecting():
                    engines.append(self._engine(path))
        if self.options["triton"]:
            self._triton(made, engines)
        named = "" if self._is_newest(made[-1]) else f" --model {shlex.quote(str(made[-1]))}"
        log(f"next: fada infer video.mp4{named}")

    @contextmanager
    def _collecting(self) -> Iterator[None]:
        """Remember what a gate refuses, and go on with the others."""
        from fada_deploy.common.errors import GateError

        try:
            yield
        except GateError as error:
            self.refused.append(error)
            log(f"refused: {error}")

    def finish(self) -> None:
        """Raise what the gates refused, when all else is done."""
        if self.refused:
            raise self.refused[0]

    def _wanted(self) -> list[tuple[str, str]]:
        """Return (precision, whom for) in the order to make them: what suits this machine's CPU last."""
        from fada_deploy.common.errors import UsageError

        asked = [p.strip() for p in self.options["precision"].split(",") if p.strip()]
        unknown = [p for p in asked if p not in _ORDER]
        if unknown or not asked:
            raise UsageError(f"no precision {', '.join(unknown)!r}; there are {', '.join(_ORDER)}")
        whom = {"cpu": ("cpu",), "tensorrt": ("tensorrt",), "both": ("tensorrt", "cpu")}[self.options["made_for"]]
        leave = self.options["leave_out"]
        if leave != "auto" and not leave.isdigit():
            raise UsageError(f"--leave-out is auto or a number of layers; found {leave!r}")
        self._engine_batch()
        if self.options["trt"] and "int8" in asked and "tensorrt" not in whom:
            raise UsageError("--trt takes int8 that is quantised for it; leave out --for cpu")
        return [(p, w) for p in _ORDER if p in asked for w in (whom if p == "int8" else ("any",))]

    def _base(self) -> Path:
        """Export the network itself, in fp32."""
        from fada_deploy.common.errors import MissingExtraError, UsageError
        from fada_deploy.common.runs import final_weights

        batch, out = self.options["batch"], self.options["out"]
        if batch != "dynamic" and not (batch.isdigit() and int(batch) > 0):
            raise UsageError(f"--batch is dynamic or a number from 1; found {batch!r}")
        run = self.source or newest()
        weights = final_weights(run)
        if out is None:
            if run.is_file():
                raise UsageError("say where to write: --out model.onnx (a weights file alone names no run)")
            out = (weights.parent.parent if run == weights.parent else run) / "export" / "model.onnx"
        try:
            from fada_deploy.export.exporter import export
        except ImportError as error:
            raise MissingExtraError(str(error.name), "export") from None
        result = export(
            weights,
            out,
            head=self.options["head"],
            size_hw=self.options["size"],
            batch=None if batch == "dynamic" else int(batch),
            frames=self.options["frames"],
            say=log,
        )
        _tell(result.verification)
        log(f"done: {result.model} and {result.proof}")
        verified = {name: v.to_dict() for name, v in result.verification.items()}
        self.document |= {"model": str(result.model), "proof": str(result.proof), "verification": verified}
        return result.model

    def _derive(self, base: Path, precision: str, made_for: str, calibration: Calibration, allowed: Gate) -> Path:
        from fada_deploy.export.derive import derive

        log(f"making {precision}" + (f" for {made_for}" if made_for != "any" else ""))
        made: Derived = derive(
            base, precision, made_for=made_for, calibration=calibration, allowed=allowed, say=log
        )
        _tell(made.verification)
        if made.judgement is not None:
            log(made.judgement.text())
        layers = ", ".join(f"{count} in {name}" for name, count in made.layers.items())
        log(f"done: {made.model}, layers: {layers}")
        self.document.setdefault("derived", []).append(made.to_dict())
        return made.model

    def _calibration(self, base: Path) -> Calibration:
        from fada_deploy.export.derive import Calibration
        from fada_deploy.runtime.backends.onnx_file import read_metadata

        leave = self.options["leave_out"]

        def frames() -> Any:
            from fada_deploy.export.frames import target_frames

            metadata = read_metadata(base)
            return target_frames(
                metadata.provenance, metadata.label_space, self.options["frames"],
                count=self.options["calibration_frames"], held_out=False, purpose="calibration", say=log,
            )  # fmt: skip

        return Calibration(frames, self.options["calibration"], None if leave == "auto" else int(leave))

    def _gate(self, base: Path) -> Gate:
        from fada_deploy.data import open_dataset
        from fada_deploy.export.derive import Gate
        from fada_deploy.runtime.backends.onnx_file import read_metadata

        data, equal = self.options["data"], self.options["min_equal"]
        dataset = None
        if data is not None:
            space = read_metadata(base).label_space
            dataset = open_dataset(data, self.options["data_root"], split="val", space=space)
        return Gate(
            equal_labels=None if equal is None else equal / 100,
            logit_error=self.options["max_logit_error"],
            dataset=dataset,
            max_miou_drop=self.options["max_miou_drop"] / 100,
        )

    def _for_engine(self, path: Path, wanted: list[tuple[str, str]]) -> bool:
        """Say whether an engine is built of a file: those asked for, and of int8 the one made for it."""
        from fada_deploy.runtime.backends.onnx_file import read_metadata

        metadata = read_metadata(path)
        return (
            self.options["trt"]
            and metadata.made_for != "cpu"
            and metadata.precision in {precision for precision, _ in wanted}
        )

    def _engine_batch(self) -> tuple[int, int, int]:
        from fada_deploy.common.errors import UsageError

        parts = self.options["trt_batch"].split(",")
        sizes = [int(p) for p in parts if p.strip().isdigit()]
        if len(sizes) != 3 or len(parts) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
            raise UsageError(f"--trt-batch is three rising numbers, as 1,1,8; found {self.options['trt_batch']!r}")
        return sizes[0], sizes[1], sizes[2]

    def _engine(self, model: Path) -> Path:
        from fada_deploy.export.engines import prove_here
        from fada_deploy.export.to_tensorrt import build_engine

        built = build_engine(
            model,
            model.with_suffix(".engine"),
            flavour=self.options["trt_flavour"],
            batch=self._engine_batch(),
            compute_capabilities=self.options["compute_capability"],
            level=self.options["trt_level"],
            workspace_mib=self.options["trt_workspace"],
            timing_cache=self.options["trt_timing_cache"],
            version_compatible=self.options["version_compatible"],
            hardware_compatible=self.options["hardware_compatible"],
            say=log,
        )
        layers = ", ".join(f"{count} in {name}" for name, count in built.sidecar.layers.items())
        log(f"done: {built.path} and its .json, convolutions: {layers}")
        verification = prove_here(built.path, log)
        self.document.setdefault("engines", []).append({"model": str(built.path), "verification": verification})
        return built.path

    def _triton(self, made: list[Path], engines: list[Path]) -> None:
        from fada_deploy.export.triton import write_repository
        from fada_deploy.runtime.backends.engine_file import read_engine

        # Triton knows no engines of TensorRT-RTX.
        served = [engine for engine in engines if read_engine(engine).flavour == "tensorrt"]
        repository = write_repository((served or made)[-1], self.options["triton"])
        self.document["triton"] = str(repository)
        log(f"done: {repository}; next: tritonserver --model-repository {shlex.quote(str(repository))}")

    @staticmethod
    def _is_newest(model: Path) -> bool:
        from fada_deploy.common.runs import newest_models

        return model in newest_models()


def _tell(verification: Any) -> None:
    for name, v in verification.items():
        logits = "" if v.logit_error is None else f", largest logit error {v.logit_error:.1e} of the largest logit"
        log(f"{name}: {v.equal_labels:.4%} of labels equal the network's on {v.frames} frames{logits}")
