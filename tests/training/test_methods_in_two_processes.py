"""Every alignment method in two processes: the losses and weights of one process.

Two processes with half of a batch each must do what one process does with gradient accumulation in
two parts, for which the arithmetic is compared with NumPy elsewhere.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn
from torch_processes import run_processes

from fada_deploy.common.label_space import CITYSCAPES_19, LabelSpace
from fada_deploy.training.data.augmentation import get_augmentation
from fada_deploy.training.data.loader import Batch
from fada_deploy.training.distributed import all_gather, all_reduce_sum, rank, world_size
from fada_deploy.training.methods.aligner import Aligner
from fada_deploy.training.methods.alignment import METHODS, make_method
from fada_deploy.training.methods.base import MethodContext
from fada_deploy.training.methods.cbst import count_all_confidences
from fada_deploy.training.methods.proda import PrototypeTeacher
from fada_deploy.training.methods.self_training import pseudo_labels, weighted_labels
from fada_deploy.training.methods.self_training_base import SelfTrainingContext
from fada_deploy.training.models import segmentation
from fada_deploy.training.models.deeplab import PointClassifier
from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel
from fada_deploy.training.optim import AveragedWeights, make_optimizer
from fada_deploy.training.stage_config import AdversarialStage, SelfTrainingStage
from fada_deploy.training.stages.adversarial import adversarial_step

K, C, A, PROCESSES, ITERATIONS = 4, 6, 5, 2, 2
SPACE = LabelSpace("four", CITYSCAPES_19.classes[:K])
Result = dict[str, Tensor]


def whole_batch(seed: int, height: int, width: int) -> Batch:
    """Return four frames with areas of one class; the parts have unequal numbers of labels."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (4, height, width, 3), dtype=np.uint8)
    labels = rng.integers(0, K, (4, height // 8, width // 8)).repeat(8, 1).repeat(8, 2)
    labels[1, :20] = 255
    return Batch(torch.from_numpy(frames), torch.from_numpy(labels), (0, 1, 2, 3))


SRC, TGT = whole_batch(1, 32, 40), whole_batch(2, 40, 32)


def own_part(batch: Batch) -> Batch:
    """Return what this process loads of a batch."""
    return batch.split(world_size())[rank()]


class SmallNetwork(nn.Module):
    """A network of two convolutions with an output of intermediate features, for all methods."""

    def __init__(self) -> None:
        super().__init__()
        # The architecture of this name has a single 1×1 convolution as its classifier.
        self.channels, self.spec = C, ModelSpec("segformer-b0", SPACE, (64, 64))
        backbone = nn.Sequential(nn.Conv2d(3, A, 4, 4), nn.Conv2d(A, C, 3, padding=1))
        self.feature_extractor = nn.ModuleDict({"backbone": backbone})
        self.classifier = PointClassifier(C, K, nn.BatchNorm2d)

    def features(self, frames: Tensor) -> Tensor:
        features: Tensor = self.feature_extractor["backbone"](
            frames.double().permute(0, 3, 1, 2) / 255
        )
        return features

    def forward(self, frames: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(frames))
        return logits


def new_model() -> SegmentationModel:
    torch.manual_seed(1)
    return SmallNetwork().double().train()  # type: ignore[return-value]


def aligned(name: str) -> Result:
    """Return losses, weights and state after some iterations of an alignment method."""
    parts = PROCESSES // world_size()
    stage = AdversarialStage(accumulate=parts, adversarial_weight=0.1, lr=1e-3, iterations=9)
    model = new_model()
    class_pixels = np.random.default_rng(3).integers(0, 50, (30, K))
    context = MethodContext(model, stage, lambda: class_pixels, lambda: iter([own_part(SRC)]))
    result: Result = {}
    with pytest.MonkeyPatch.context() as patch:
        architecture = replace(segmentation.BACKBONES["segformer-b0"], auxiliary="0")
        patch.setitem(segmentation.BACKBONES, "segformer-b0", architecture)
        method = make_method(name, context)
        method.heads.double()
        method.discriminator.double()
        aligner = Aligner.create(method, stage)
        optimizer = make_optimizer(model, stage, method.heads)
        for iteration in range(ITERATIONS):
            aligner.start_iteration(iteration, stage)
            losses = adversarial_step(model, optimizer, aligner, own_part(SRC), own_part(TGT))
            for loss, value in losses.items():
                result[f"{loss} {iteration}"] = all_reduce_sum(value)
    for key, network in (
        ("model", model), ("heads", method.heads), ("discriminator", method.discriminator),
    ):  # fmt: skip
        result |= {f"{key}.{k}": v.detach().clone() for k, v in network.state_dict().items()}
    return result


def labeled() -> Result:
    """Return pseudo-labels of a mean teacher, and the statistics for those of CBST and ProDA."""
    model = new_model().eval()
    average, stage = AveragedWeights(model, 0.9), SelfTrainingStage()
    teacher = PrototypeTeacher(
        SelfTrainingContext(
            model, average, stage, get_augmentation("none"), False,
            count_target=lambda _: torch.zeros(()), whole_target=lambda: iter([own_part(TGT)]),
        )
    )  # fmt: skip
    teacher.start_iteration(0)
    before = teacher.prototypes.values
    teacher.views(own_part(SRC), own_part(TGT), np.random.default_rng(0))
    logits, size_hw = model(own_part(TGT).frames_bhwc), TGT.size_hw
    confident = pseudo_labels(logits, size_hw, max_threshold=0.9, quantile=0.5)
    weight = weighted_labels(logits, size_hw, max_threshold=0.3).weight
    assert weight is not None
    return {
        "confident pixels": torch.cat(all_gather(confident)),
        "fraction of confident pixels": weight,
        "confidences": count_all_confidences(model, [own_part(TGT)]),
        "prototypes of the target": before,
        "prototypes": teacher.prototypes.values,
        "exists": teacher.prototypes.exists,
    }


RESULTS = {"pseudo-labels": labeled, **{name: partial(aligned, name) for name in METHODS}}


def run_process(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=number, world_size=PROCESSES
    )
    torch.save({name: RESULTS[name]() for name in RESULTS}, f"{folder}/{number}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Result]]:
    """Return what each process has."""
    folder: Path = tmp_path_factory.mktemp("processes")
    run_processes(run_process, str(folder), count=PROCESSES)
    return [torch.load(folder / f"{number}.pt") for number in range(PROCESSES)]


@pytest.mark.parametrize("name", list(RESULTS))
def test_two_processes_give_the_result_of_one(results: list[dict[str, Result]], name: str) -> None:
    want = RESULTS[name]()
    for process in results:
        assert process[name].keys() == want.keys()
        for key, value in want.items():
            torch.testing.assert_close(
                process[name][key], value, rtol=1e-6, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}"
            )


def test_the_processes_had_different_frames() -> None:
    first, second = SRC.split(PROCESSES)
    assert not torch.equal(first.frames_bhwc, second.frames_bhwc)
    assert (first.labels == 255).sum() != (second.labels == 255).sum()
