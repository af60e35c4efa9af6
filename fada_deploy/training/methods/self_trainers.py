"""The self-training methods. Each is one module of this folder, which states its equations."""

from __future__ import annotations

from fada_deploy.training.methods.cbst import Rounds
from fada_deploy.training.methods.mean_teacher import MeanTeacher
from fada_deploy.training.methods.proda import PrototypeTeacher
from fada_deploy.training.methods.self_training_base import SelfTrainingContext, SelfTrainingMethod


def make_self_training(context: SelfTrainingContext) -> SelfTrainingMethod:
    """Return the method that the settings of the stage select."""
    if context.stage.prototypes:
        return PrototypeTeacher(context)
    if context.stage.rounds:
        return Rounds(context)
    return MeanTeacher(context)
