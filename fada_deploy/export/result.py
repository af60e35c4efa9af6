"""The result of an export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fada_deploy.common.errors import ToleranceError

if TYPE_CHECKING:
    from fada_deploy.export.convert import ConvertedModel
    from fada_deploy.runtime.parity import ParityResult


@dataclass(frozen=True)
class VerifiedEngine:
    """A TensorRT engine that was written.

    `verification` maps the backend to its parity result; it is "not_run" if this machine cannot
    run the engine.
    """

    path: Path
    verification: str | Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready summary."""
        return {"model": str(self.path), "verification": self.verification}


@dataclass(frozen=True)
class ExportResult:
    """The files of one export.

    Attributes:
        model: The fp32 ONNX file, or the ONNX file that was given as the source.
        reference: The reference outputs of `model`.
        verification: Parity result of the fp32 file by backend; empty if it was given.
        converted: Files in other precisions.
        engines: TensorRT engines.
        triton: Folder of the Triton model repository, or None.
        refused: One line for each file that exceeded a tolerance and was not saved.
    """

    model: Path
    reference: Path
    verification: Mapping[str, ParityResult] = field(default_factory=dict)
    converted: tuple[ConvertedModel, ...] = ()
    engines: tuple[VerifiedEngine, ...] = ()
    triton: Path | None = None
    refused: tuple[str, ...] = ()

    @property
    def files(self) -> list[Path]:
        """The ONNX files in the order in which they were written."""
        return [self.model, *(converted.model for converted in self.converted)]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready summary."""
        return {
            "model": str(self.model),
            "reference": str(self.reference),
            "verification": {name: v.to_dict() for name, v in self.verification.items()},
            "converted": [converted.to_dict() for converted in self.converted],
            "engines": [engine.to_dict() for engine in self.engines],
            "triton": None if self.triton is None else str(self.triton),
            "refused": list(self.refused),
        }


class RefusedFilesError(ToleranceError):
    """Some files exceeded a tolerance; `result` describes the files that were written.

    The message contains the reason for each file.
    """

    def __init__(self, result: ExportResult) -> None:
        super().__init__(f"files that exceeded a tolerance: {'; '.join(result.refused)}")
        self.result = result

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.result,)
