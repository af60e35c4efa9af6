"""The options of an export, checked before any work starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fada_deploy.common.errors import UsageError
from fada_deploy.common.metadata import HEADS, PRECISIONS
from fada_deploy.runtime.backends.engine_file import FLAVORS

CALIBRATION_METHODS = ("percentile", "minmax", "entropy")
# Values of `ExportOptions.hardware_target` → the int8 files to write.
INT8_TARGETS = {"cpu": ("cpu",), "tensorrt": ("tensorrt",), "both": ("tensorrt", "cpu")}


class Variant(NamedTuple):
    """One ONNX file of a network: its precision, and the hardware that an int8 file is for."""

    precision: str
    hardware_target: str = "any"


@dataclass(frozen=True)
class EngineOptions:
    """Options of the TensorRT or TensorRT-RTX builder.

    Attributes:
        flavor: "tensorrt", "tensorrt_rtx", or "auto" for the first of them that can build here.
        batch: Smallest, most common and largest batch size; ignored if the batch size of the ONNX
            file is fixed.
        compute_capabilities: GPUs to build for, such as "SM89" or "CURRENT" (TensorRT-RTX only);
            empty for the default of the library.
        optimization_level: Effort of the builder, from 0 (fastest build) to 5 (fastest engine).
        workspace_mib: Memory limit of the builder in MiB; None for the default of the library.
        timing_cache: File that keeps the kernel timings for later builds (TensorRT only); None for
            a file in the user's cache folder.
        version_compatible: Build an engine that later TensorRT versions can load.
        hardware_compatible: Build an engine that runs on any GPU from Ampere on.
    """

    flavor: str = "auto"
    batch: tuple[int, int, int] = (1, 1, 8)
    compute_capabilities: tuple[str, ...] = ()
    optimization_level: int = 3
    workspace_mib: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False

    def __post_init__(self) -> None:
        _require_choice("TensorRT flavor", self.flavor, ("auto", *FLAVORS))
        if len(self.batch) != 3 or not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2]:
            raise UsageError(
                "the engine's batch sizes must be MIN,OPT,MAX with 1 <= MIN <= OPT <= MAX, "
                f"got {','.join(map(str, self.batch))}"
            )
        if not 0 <= self.optimization_level <= 5:
            raise UsageError(
                f"optimization level must be between 0 and 5, got {self.optimization_level}"
            )
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise UsageError(f"workspace must be at least 1 MiB, got {self.workspace_mib}")

    def check_flavor(self, flavor: str) -> None:
        """Raise `UsageError` for options that `flavor` ("tensorrt" or "tensorrt_rtx") lacks."""
        if flavor == "tensorrt_rtx":
            for name in ("version_compatible", "hardware_compatible"):
                if getattr(self, name):
                    raise UsageError(
                        f"tensorrt_rtx cannot build {name.replace('_', '-')} engines; leave out "
                        f"--{name.replace('_', '-')}, or build with tensorrt "
                        "(pip install tensorrt)"
                    )
        elif self.compute_capabilities:
            raise UsageError(
                "tensorrt builds for the GPU of this machine only; leave out --compute-capability, "
                "or build with tensorrt_rtx (pip install tensorrt-rtx)"
            )

    def warnings(self, flavor: str) -> list[str]:
        """Return one line for each option that is ignored or has a side effect."""
        lines = []
        if self.version_compatible:
            lines.append(
                "a version-compatible engine contains host code, which the runtime of fada_deploy "
                "refuses to execute"
            )
        if self.timing_cache is not None and flavor == "tensorrt_rtx":
            lines.append(
                "tensorrt_rtx does not time kernels while it builds, so the timing cache is ignored"
            )
        return lines


@dataclass(frozen=True)
class ExportOptions:
    """What `run_export` writes, and how it verifies it.

    Attributes:
        head: "logits" (upsampled by the runtime; fastest) or "labels" (upsampling and argmax are
            part of the graph, for other runtimes).
        size_hw: Input size (height, width) of the network; None for the size it was trained at.
        batch: Fixed batch size; None for a dynamic one.
        precisions: Files to write: "fp32", "fp16", "bf16", "int8". The fp32 file is always written
            first, because the others are converted from it.
        hardware_target: Which int8 files to write: "cpu", "tensorrt" or "both".
        calibration: Images or video for the reference outputs and for int8 calibration; None for
            the target data of the run.
        calibration_method: How int8 ranges are chosen: "percentile", "minmax" or "entropy".
        calibration_frames: Number of frames for int8 calibration.
        float_layers: Number of layers that stay in float32 in an int8 file; None to measure how
            many are needed.
        data: Labeled data set (name or TOML file) on which converted files are compared with the
            fp32 file.
        data_root: Folder of `data`.
        max_miou_drop: Largest allowed drop of the mIoU on `data`, as a fraction (0.02 is 2 points).
        min_equal_labels: Fraction of pixels (0 … 1) whose label must equal that of the network;
            None for the tolerance of the precision.
        max_logit_error: Largest allowed logit error, as a fraction of the largest absolute logit;
            None for the tolerance of the precision.
        engine: Build a TensorRT engine of each file with these options; None for no engines.
        triton: Folder in which to write a Triton model repository; None for none.
        out: Path of the fp32 file; None for `<run>/export/model.onnx`.

    Raises:
        UsageError: A value is not allowed, or two options exclude each other.
    """

    head: str = "logits"
    size_hw: tuple[int, int] | None = None
    batch: int | None = None
    precisions: tuple[str, ...] = ("fp32",)
    hardware_target: str = "both"
    calibration: Path | None = None
    calibration_method: str = "percentile"
    calibration_frames: int = 64
    float_layers: int | None = None
    data: str | None = None
    data_root: Path | None = None
    max_miou_drop: float = 0.02
    min_equal_labels: float | None = None
    max_logit_error: float | None = None
    engine: EngineOptions | None = None
    triton: Path | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        # Callers from Python may pass strings as paths, and lists.
        for path_field in ("calibration", "data_root", "triton", "out"):
            if isinstance(path := getattr(self, path_field), str):
                object.__setattr__(self, path_field, Path(path))
        if isinstance(self.data, Path):
            object.__setattr__(self, "data", str(self.data))
        if isinstance(self.size_hw, str):
            raise UsageError(
                f"size_hw must be (height, width), for example (256, 512), got {self.size_hw!r}"
            )
        if isinstance(self.precisions, str):
            raise UsageError(
                f"precisions must be a tuple, for example ('fp16',), got {self.precisions!r}"
            )
        object.__setattr__(self, "precisions", tuple(self.precisions))
        self._check_values()
        self._check_combinations()

    def _check_values(self) -> None:
        _require_choice("head", self.head, HEADS)
        _require_choice("hardware target", self.hardware_target, tuple(INT8_TARGETS))
        _require_choice("calibration method", self.calibration_method, CALIBRATION_METHODS)
        if not self.precisions:
            raise UsageError(f"no precision was given; use one or more of {', '.join(PRECISIONS)}")
        for precision in self.precisions:
            _require_choice("precision", precision, PRECISIONS)
        for name, value, minimum in (
            ("batch", self.batch, 1),
            ("calibration frames", self.calibration_frames, 2),
            ("float layers", self.float_layers, 0),
            ("max logit error", self.max_logit_error, 0),
        ):
            if value is not None and not value >= minimum:
                raise UsageError(f"{name} must be at least {minimum}, got {value}")
        if self.min_equal_labels is not None and not 0 <= self.min_equal_labels <= 1:
            raise UsageError(
                f"min_equal_labels must be between 0 and 1, got {self.min_equal_labels:g}"
            )
        if self.out is not None and self.out.suffix != ".onnx":
            raise UsageError(f"the output file must end with .onnx, got {self.out}")

    def _check_combinations(self) -> None:
        if self.data is not None and set(self.precisions) == {"fp32"}:
            raise UsageError(
                "--data compares converted files with the fp32 file; add a precision, for example "
                "--precision fp16,int8"
            )
        if self.engine is not None and "int8" in self.precisions and self.hardware_target == "cpu":
            raise UsageError(
                "an engine needs an int8 file quantized for TensorRT; leave out "
                "--hardware-target cpu"
            )

    def variants(self) -> list[Variant]:
        """Return the files to write, in this order: fp32, fp16, bf16, int8."""
        return [
            Variant(precision, target)
            for precision in PRECISIONS
            if precision in self.precisions
            for target in (INT8_TARGETS[self.hardware_target] if precision == "int8" else ("any",))
        ]


def _require_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"unknown {name} {value!r}; use one of {', '.join(allowed)}")
