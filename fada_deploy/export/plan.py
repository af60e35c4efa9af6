"""What one call of `fada export` does: the fp32 file, other precisions, engines, a Triton repository."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fada_deploy.common.runs import newest_run
from fada_deploy.common.system import require_package

if TYPE_CHECKING:
    from fada_deploy.common.errors import ToleranceError
    from fada_deploy.export.convert import Calibration
    from fada_deploy.export.verify import VerificationLimits
    from fada_deploy.runtime.parity import ParityResult

logger = logging.getLogger(__name__)

_ORDER = ("fp32", "fp16", "bf16", "int8")


@dataclass
class Plan:
    """One call: the fp32 file, the precisions made of it, their engines, a repository of the last."""

    source: Path | None
    options: dict[str, Any]
    document: dict[str, Any] = field(default_factory=dict)
    refused: list[ToleranceError] = field(default_factory=list)
    # The precision of a file that is given in place of a run.
    _given: str = "fp32"

    def run(self) -> None:
        """Check what was asked for, then make all of it; a refused file does not stop the others."""
        from fada_deploy.common.errors import ModelError, UsageError
        from fada_deploy.common.runs import newest_models

        wanted = self._wanted()
        if self.source is not None and self.source.suffix == ".onnx" and not self.source.is_file():
            raise ModelError(f"{self.source}: no such file; give a run, or the fp32 .onnx of one")
        if any(precision != "fp32" for precision, _ in wanted):
            require_package("onnx", "onnx")
        elif self.options["data"] is not None:
            raise UsageError(
                "--data judges other precisions than fp32; name them, as --precision fp16,int8"
            )
        if self.source is not None and self.source.suffix == ".onnx":
            if not (self.options["trt"] or self.options["triton"] or wanted != [("fp32", "any")]):
                raise UsageError(
                    f"{self.source}: is exported already; say --precision, --trt or --triton"
                )
            self._check_fixed()
            wanted = self._of_file(self.source, wanted)
            base, self.document["model"] = self.source, str(self.source)
        else:
            base = self._base(wanted)
        made, engines = [base], []
        if others := [each for each in wanted if each[0] not in ("fp32", self._given)]:
            calibration, allowed = self._calibration(base), self._gate(base)
            for precision, hardware_target in others:
                with self._collecting():
                    made.append(
                        self._derive(base, precision, hardware_target, calibration, allowed)
                    )
        for path in made:
            if self._for_engine(path, wanted):
                with self._collecting():
                    engines.append(self._engine(path))
        if self.options["triton"]:
            self._triton(made, engines)
        named = "" if made[-1] in newest_models() else f" --model {shlex.quote(str(made[-1]))}"
        logger.info(f"next: fada infer video.mp4{named}")

    @contextmanager
    def _collecting(self) -> Iterator[None]:
        """Remember what a gate refuses, and go on with the others."""
        from fada_deploy.common.errors import ToleranceError

        try:
            yield
        except ToleranceError as error:
            self.refused.append(error)
            logger.info(f"refused: {error}")

    def finish(self) -> None:
        """Raise `ToleranceError` for what was refused, when all else is done."""
        from fada_deploy.common.errors import ToleranceError

        if self.refused:
            names = ", ".join(str(error).partition(":")[0] for error in self.refused)
            raise ToleranceError(f"refused and not written, as said above: {names}")

    def _check_fixed(self) -> None:
        """Refuse what decides the fp32 file when that file is given."""
        from fada_deploy.common.errors import UsageError

        defaults = {"head": "logits", "size": None, "batch": "dynamic", "out": None}
        given = [f"--{name}" for name, default in defaults.items() if self.options[name] != default]
        if given:
            raise UsageError(
                f"{self.source}: is exported already; {', '.join(given)} belongs to the export of a run"
            )

    def _of_file(self, model: Path, wanted: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Take a file of another precision as what is wanted, when nothing else was asked for."""
        from fada_deploy.common.errors import UsageError
        from fada_deploy.runtime.backends.onnx_file import read_metadata

        metadata = read_metadata(model)
        if metadata.precision == "fp32" or wanted != [("fp32", "any")]:
            return wanted
        if self.options["trt"] and metadata.hardware_target == "cpu":
            raise UsageError(f"{model}: is quantized for CPUs; give the file that is for tensorrt")
        self._given = metadata.precision
        return [(metadata.precision, metadata.hardware_target)]

    def _wanted(self) -> list[tuple[str, str]]:
        """Return (precision, whom for) in the order to make them: what suits this machine's CPU last."""
        from fada_deploy.common.errors import UsageError

        asked = [p.strip() for p in self.options["precision"].split(",") if p.strip()]
        unknown = [p for p in asked if p not in _ORDER]
        if unknown or not asked:
            raise UsageError(f"no precision {', '.join(unknown)!r}; there are {', '.join(_ORDER)}")
        whom = {"cpu": ("cpu",), "tensorrt": ("tensorrt",), "both": ("tensorrt", "cpu")}[
            self.options["hardware_target"]
        ]
        leave = self.options["leave_out"]
        if leave != "auto" and not leave.isdigit():
            raise UsageError(f"--leave-out is auto or a number of layers; found {leave!r}")
        self._engine_batch()
        if self.options["trt"] and "int8" in asked and "tensorrt" not in whom:
            raise UsageError("--trt takes int8 that is quantized for it; leave out --for cpu")
        return [(p, w) for p in _ORDER if p in asked for w in (whom if p == "int8" else ("any",))]

    def _base(self, wanted: list[tuple[str, str]]) -> Path:
        """Export the network itself, in fp32."""
        from fada_deploy.common.errors import MissingExtraError, UsageError
        from fada_deploy.common.runs import final_weights

        batch, out = self.options["batch"], self.options["out"]
        if batch != "dynamic" and not (batch.isdigit() and int(batch) > 0):
            raise UsageError(f"--batch is dynamic or a number from 1; found {batch!r}")
        run = self.source or newest_run()
        if run.suffix in (".pth", ".pt"):
            raise UsageError(
                f"{run}: is a checkpoint and no run; make one of it first: fada import {run}"
            )
        weights = final_weights(run)
        if out is None:
            if run.is_file():
                raise UsageError(
                    "say where to write: --out model.onnx (a weights file alone names no run)"
                )
            # Head labels has a name of its own: other precisions beside model.onnx were made of that.
            name = "model.onnx" if self.options["head"] == "logits" else "model.labels.onnx"
            out = (weights.parent.parent if run == weights.parent else run) / "export" / name
        try:
            from fada_deploy.export.exporter import export
        except ImportError as error:
            raise MissingExtraError(str(error.name), "export") from None
        # What other precisions may lose, the file that they are made of may not.
        thresholds = self._thresholds().thresholds("fp32") if ("fp32", "any") in wanted else None
        result = export(
            weights,
            out,
            head=self.options["head"],
            size_hw=self.options["size"],
            batch=None if batch == "dynamic" else int(batch),
            frames=self.options["frames"],
            thresholds=thresholds,
            say=logger.info,
        )
        _tell(result.verification)
        logger.info(f"done: {result.model} and {result.reference}")
        self._tell_stale(result.model, wanted)
        verified = {name: v.to_dict() for name, v in result.verification.items()}
        self.document |= {
            "model": str(result.model),
            "reference": str(result.reference),
            "verification": verified,
        }
        return result.model

    def _tell_stale(self, model: Path, wanted: list[tuple[str, str]]) -> None:
        """Name the files beside a new one that were proven by the pack which it replaced."""
        from fada_deploy.common.errors import FadaError
        from fada_deploy.common.runs import MODEL_SUFFIXES
        from fada_deploy.export.convert import converted_path
        from fada_deploy.runtime.backend_selection import metadata_of
        from fada_deploy.runtime.parity import ReferenceOutputs, reference_path

        stale = []
        made_anew = {
            converted_path(model, precision, hardware_target)
            for precision, hardware_target in wanted
        }
        if self.options["trt"]:
            made_anew |= {path.with_suffix(".engine") for path in {model, *made_anew}}
        beside = [
            path
            for path in model.parent.iterdir()
            if path.suffix in MODEL_SUFFIXES and path.name[0] != "."
        ]
        for path in sorted(beside):
            if path in made_anew or path == model or reference_path(path) != reference_path(model):
                continue
            try:
                ReferenceOutputs.of(path, metadata_of(path))
            except FadaError:
                stale.append(path.name)
        if stale:
            logger.info(
                f"note: the pack that proved {', '.join(stale)} is replaced; export them again"
            )

    def _derive(
        self,
        base: Path,
        precision: str,
        hardware_target: str,
        calibration: Calibration,
        allowed: VerificationLimits,
    ) -> Path:
        from fada_deploy.export.convert import derive

        logger.info(
            f"making {precision}" + (f" for {hardware_target}" if hardware_target != "any" else "")
        )
        made = derive(
            base,
            precision,
            hardware_target=hardware_target,
            calibration=calibration,
            allowed=allowed,
            say=logger.info,
        )
        _tell(made.verification)
        if made.judgment is not None:
            logger.info(made.judgment.text())
        layers = ", ".join(f"{count} in {name}" for name, count in made.layers.items())
        logger.info(f"done: {made.model}, layers: {layers}")
        self.document.setdefault("derived", []).append(made.to_dict())
        return made.model

    def _calibration(self, base: Path) -> Calibration:
        from fada_deploy.export.convert import Calibration
        from fada_deploy.runtime.backends.onnx_file import read_metadata

        leave = self.options["leave_out"]

        def frames() -> Any:
            from fada_deploy.export.calibration_frames import target_frames

            metadata = read_metadata(base)
            return target_frames(
                metadata.provenance, metadata.label_space, self.options["frames"],
                count=self.options["calibration_frames"], held_out=False, purpose="calibration", say=logger.info,
            )  # fmt: skip

        return Calibration(
            frames, self.options["calibration"], None if leave == "auto" else int(leave)
        )

    def _gate(self, base: Path) -> VerificationLimits:
        from fada_deploy.data import open_dataset
        from fada_deploy.runtime.backends.onnx_file import read_metadata

        data, dataset = self.options["data"], None
        if data is not None:
            space = read_metadata(base).label_space
            dataset = open_dataset(data, self.options["data_root"], split="val", space=space)
        return replace(
            self._thresholds(), dataset=dataset, max_miou_drop=self.options["max_miou_drop"] / 100
        )

    def _thresholds(self) -> VerificationLimits:
        from fada_deploy.export.verify import VerificationLimits

        return VerificationLimits.in_percent(
            self.options["min_equal"], self.options["max_logit_error"]
        )

    def _for_engine(self, path: Path, wanted: list[tuple[str, str]]) -> bool:
        """Say whether an engine is built of a file: those asked for, and of int8 the one made for it."""
        from fada_deploy.runtime.backends.onnx_file import read_metadata

        metadata = read_metadata(path)
        return (
            self.options["trt"]
            and metadata.hardware_target != "cpu"
            and metadata.precision in {precision for precision, _ in wanted}
        )

    def _engine_batch(self) -> tuple[int, int, int]:
        from fada_deploy.common.errors import UsageError

        parts = self.options["trt_batch"].split(",")
        sizes = [int(p) for p in parts if p.strip().isdigit()]
        if len(sizes) != 3 or len(parts) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
            raise UsageError(
                f"--trt-batch is three rising numbers, as 1,1,8; found {self.options['trt_batch']!r}"
            )
        return sizes[0], sizes[1], sizes[2]

    def _engine(self, model: Path) -> Path:
        from fada_deploy.export.engines import verify_engine
        from fada_deploy.export.to_tensorrt import build_engine
        from fada_deploy.runtime.backends.onnx_file import read_metadata
        from fada_deploy.runtime.parity import ReferenceOutputs

        # Without its pack an engine could never be proven.
        ReferenceOutputs.of(model, read_metadata(model))
        built = build_engine(
            model,
            model.with_suffix(".engine"),
            flavor=self.options["trt_flavor"],
            batch=self._engine_batch(),
            compute_capabilities=self.options["compute_capability"],
            level=self.options["trt_level"],
            workspace_mib=self.options["trt_workspace"],
            timing_cache=self.options["trt_timing_cache"],
            version_compatible=self.options["version_compatible"],
            hardware_compatible=self.options["hardware_compatible"],
            say=logger.info,
        )
        layers = ", ".join(f"{count} in {name}" for name, count in built.sidecar.layers.items())
        logger.info(f"done: {built.path} and its .json, convolutions: {layers}")
        verification = verify_engine(built.path, logger.info)
        self.document.setdefault("engines", []).append(
            {"model": str(built.path), "verification": verification}
        )
        return built.path

    def _triton(self, made: list[Path], engines: list[Path]) -> None:
        from fada_deploy.export.triton import write_repository
        from fada_deploy.runtime.backends.engine_file import read_engine

        # Triton knows no engines of TensorRT-RTX.
        served = [engine for engine in engines if read_engine(engine).flavor == "tensorrt"]
        repository = write_repository((served or made)[-1], self.options["triton"])
        self.document["triton"] = str(repository)
        logger.info(
            f"done: {repository}; next: tritonserver --model-repository {shlex.quote(str(repository))}"
        )


def _tell(verification: Mapping[str, ParityResult]) -> None:
    for name, found in verification.items():
        logger.info(f"{name}: {found.text()}")
