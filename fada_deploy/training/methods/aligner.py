"""An alignment method with the optimizer of its discriminator.

The adversarial stage trains with its gradients alone, the self-training stage adds them to its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torch.optim import Optimizer

from fada_deploy.training import distributed
from fada_deploy.training.data.loader import Batch
from fada_deploy.training.loop import TrainingState
from fada_deploy.training.methods.base import AlignmentMethod, Losses, Step
from fada_deploy.training.models.segmentation import SegmentationModel
from fada_deploy.training.optim import make_discriminator_optimizer, set_learning_rate
from fada_deploy.training.stage_config import AdversarialStage, Stage


@dataclass(eq=False)
class Aligner:
    """A method, the optimizer of its discriminator, and the settings that it is trained with.

    `optimizer` is None for a method without a discriminator. `iteration` counts from 0, `progress`
    is the fraction of the iterations that are done.
    """

    method: AlignmentMethod
    optimizer: Optimizer | None
    settings: AdversarialStage
    iteration: int = field(default=0, init=False)
    progress: float = field(default=1.0, init=False)

    @classmethod
    def create(cls, method: AlignmentMethod, settings: AdversarialStage) -> Aligner:
        """Return an aligner with a new optimizer."""
        if not list(method.discriminator.parameters()):
            return cls(method, None, settings)
        return cls(method, make_discriminator_optimizer(method.discriminator, settings), settings)

    def state(self) -> TrainingState:
        """Return the objects that a resumed stage needs, by name."""
        state: TrainingState = {
            "discriminator": self.method.discriminator,
            "heads": self.method.heads,
        }
        if self.optimizer is None:
            return state
        return {**state, "discriminator_optimizer": self.optimizer}

    def start_iteration(self, iteration: int, stage: Stage) -> dict[str, float]:
        """Set the learning rate of D by the schedule of a stage; return it by name."""
        self.iteration, self.progress = iteration, iteration / stage.iterations
        if self.optimizer is None:
            return {}
        return {"discriminator_lr": set_learning_rate(self.optimizer, iteration, stage)}

    def zero_grad(self) -> None:
        """Reset the gradients of D."""
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Sum the gradients of D over all processes and update it."""
        if self.optimizer is not None:
            distributed.all_reduce_gradients(self.method.discriminator.parameters())
            self.optimizer.step()

    def accumulate_gradients(
        self,
        model: SegmentationModel,
        src: Batch,
        tgt: Batch,
        *,
        amp: bool,
        num_labeled: Tensor,
        num_parts: int,
    ) -> Losses:
        """Add the gradients of one part of a global batch to those of the networks.

        `num_labeled` is the `count_labeled` of the global source batch, which consists of
        `num_parts` equal parts. Return the unweighted losses of the part.
        """
        step = Step(
            model, src, tgt, self.settings, amp=amp, num_labeled=num_labeled, num_parts=num_parts,
            iteration=self.iteration, progress=self.progress,
        )  # fmt: skip
        return self.method.accumulate_gradients(step)
