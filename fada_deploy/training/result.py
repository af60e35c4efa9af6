"""The result of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fada_deploy.common.runs import STAGES, WEIGHTS
from fada_deploy.data.base import FrameDataset


@dataclass(frozen=True, repr=False)
class TrainingResult:
    """The result of a training run.

    Attributes:
        run: Folder of the run.
        scores: Contents of `scores.json` by stage: `miou`, per-class `iou`, `frames`, `input` and
            more. Empty if the target has no labeled validation frames.
        bad_files: One error line for each file that could not be used.
        frames: The target's validation frames, or its training frames if it has no others.
    """

    run: Path
    scores: dict[str, dict[str, Any]]
    bad_files: tuple[str, ...]
    frames: FrameDataset

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that the run has finished, in training order."""
        return tuple(stage for stage in STAGES if (self.run / stage / WEIGHTS).is_file())

    def __repr__(self) -> str:
        """Show the run and, for each finished stage, its mIoU in percent if it was scored."""
        stages = []
        for stage in self.stages:
            score = self.scores.get(stage)
            stages.append(stage if score is None else f"{stage} {100 * score['miou']:.1f} % mIoU")
        return f"TrainingResult(run={str(self.run)!r}, stages=[{', '.join(stages)}])"
