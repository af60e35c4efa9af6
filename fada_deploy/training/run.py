"""Train a run: open the data, train the stages in order, score each one, write the weights.

`train` is the entry point; `fada train` calls it.
"""

from __future__ import annotations

import logging
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fada_deploy._version import __version__
from fada_deploy.cluster.connection import ClusterOptions
from fada_deploy.common.errors import DataError, FadaError, UsageError
from fada_deploy.common.files import lock, remove_partial
from fada_deploy.common.runs import CONFIG, EXPORTS, STAGES, WEIGHTS, checkpoint_path
from fada_deploy.common.selection import SELECTION
from fada_deploy.data.base import FrameDataset
from fada_deploy.data.cache import FrameCache
from fada_deploy.training import distributed
from fada_deploy.training.cluster_passes import (
    count_target_on_cluster,
    write_pseudo_labels_on_cluster,
)
from fada_deploy.training.compilation import Compilation
from fada_deploy.training.config import RunConfig
from fada_deploy.training.data.datasets import is_recording, require_target
from fada_deploy.training.data.loader import BatchLoader
from fada_deploy.training.data.run_data import RunData
from fada_deploy.training.device import deterministic_algorithms, has_fast_bf16
from fada_deploy.training.loop import STATE, MakeLoop, TrainingLoop, TrainingState
from fada_deploy.training.methods.aligner import Aligner
from fada_deploy.training.methods.alignment import make_method
from fada_deploy.training.methods.base import MethodContext
from fada_deploy.training.methods.cbst import count_all_confidences
from fada_deploy.training.model_setup import ModelSetup, open_label_space
from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel
from fada_deploy.training.optim import AveragedWeights, mix_weights
from fada_deploy.training.predict import Predictor
from fada_deploy.training.reporting.run_summary import (
    RunSummary,
    discriminator_health,
    waiting_for_frames,
)
from fada_deploy.training.reporting.tensorboard import TensorBoardLogger, require_tensorboard
from fada_deploy.training.result import TrainingResult
from fada_deploy.training.run_files import check_fingerprints, remove_empty_run, save_config
from fada_deploy.training.scoring import describe_scores, stage_scores
from fada_deploy.training.selection import select_stage
from fada_deploy.training.stages.adversarial import train_adversarial
from fada_deploy.training.stages.distill import train_student, write_pseudo_labels
from fada_deploy.training.stages.selftrain import train_self_training
from fada_deploy.training.stages.source import train_supervised
from fada_deploy.training.translate_sources import check_translation, translate_sources
from fada_deploy.training.weights.checkpoints import save_weights

logger = logging.getLogger(__name__)


def train(
    config: RunConfig,
    run: Path,
    *,
    device: torch.device,
    tensorboard: bool = False,
    cluster: ClusterOptions | None = None,
    cache: FrameCache | None = None,
) -> TrainingResult:
    """Train the stages in `config.stages` that the folder `run` does not contain yet.

    An interrupted run resumes from its last saved state. `tensorboard` also writes scalars and
    example images to `run/tensorboard`. A Ray `cluster` predicts the whole target where a stage
    needs that; everything else stays in this process. `cache` keeps decoded frames. Messages go to
    the logger `fada_deploy`, progress to `common.progress`. SIGINT, SIGTERM or SIGHUP saves the
    state and raises `InterruptedRunError`.

    Raise `FadaError` for settings or data that cannot be used, before the first iteration.
    """
    if cluster is not None and distributed.world_size() > 1:
        raise UsageError("--ray cannot be combined with torchrun; use one of them")
    distributed.require_single_process("`fada adapt` and training from Python")
    with (
        lock(run) if distributed.is_main_process() else nullcontext(),
        deterministic_algorithms(config.deterministic),
    ):
        is_new = not (run / CONFIG).is_file()
        if distributed.is_main_process():
            # `fada export` takes no lock and may be writing.
            remove_partial(run, except_in=EXPORTS)
            if is_new:
                # Before the data is prepared, which can take long and is continued after a restart.
                save_config(config, run)
        with distributed.main_process_first():
            try:
                training = TrainingRun(
                    config, run,
                    device=device, tensorboard=tensorboard, cluster=cluster, cache=cache,
                )  # fmt: skip
            except FadaError:
                # Do not leave an empty run behind. Inside the block, because the other processes
                # end after it, and their end stops this one.
                if distributed.is_main_process():
                    remove_empty_run(run, is_new=is_new)
                raise
        if not is_new and distributed.is_main_process():
            # The data of a resumed run may be in new folders, which have been read by now.
            save_config(config, run)
        processes = distributed.world_size()
        suffix = f" in {processes} processes" if processes > 1 else ""
        logger.info("run %s: training on %s%s", run, device, suffix)
        training.setup.log_initial_weights()
        translate_sources(config, run, training.data, device=device, amp=training.amp)
        for stage in STAGES:
            if stage in config.stages:
                training.train_stage(stage)
                if distributed.is_main_process():
                    training.score_stage(stage)
                # The next stage of the other processes reads the weights of this one.
                distributed.barrier()
        if distributed.is_main_process():
            start = training.setup.start_weights
            select_stage(
                run, training.data.tgt_frames, start=start, seed=config.seed, device=device
            )
        distributed.barrier()
    return training.result()


class TrainingRun:
    """The data, networks and files of one run.

    Raise `FadaError` if the settings or the data cannot be used.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        *,
        device: torch.device,
        tensorboard: bool,
        cluster: ClusterOptions | None = None,
        cache: FrameCache | None = None,
    ) -> None:
        self.compilation = Compilation(
            device, enabled=config.compile, cuda_graphs=config.cuda_graphs
        )
        if tensorboard:
            require_tensorboard()
        check_translation(config, folder)
        self.config, self.folder, self.device, self.cluster = config, folder, device, cluster
        self.amp = config.amp == "bf16" or (config.amp == "auto" and has_fast_bf16(device))
        self.scores: dict[str, dict[str, Any]] = {}
        if is_recording(config):
            require_target(config)
        space = open_label_space(config)
        # Before the data, because these checks are fast.
        self.setup = ModelSetup(config, folder, space, device)
        self.data = RunData(config, folder, space, device, cache=cache)
        check_fingerprints(folder, self.data.datasets, self.data.labeled_sources)
        self.tensorboard: TensorBoardLogger | None = None
        if tensorboard and distributed.is_main_process():
            self.tensorboard = TensorBoardLogger(folder / "tensorboard", self._shown_frames, device)

    def result(self) -> TrainingResult:
        """Return scores and bad files of the stages so far."""
        bad_files = tuple(self.data.bad_files)
        return TrainingResult(self.folder, self.scores, bad_files, self._shown_frames)

    @property
    def _shown_frames(self) -> FrameDataset:
        return self.data.val_frames or self.data.tgt_frames

    def train_stage(self, stage: str) -> None:
        """Train a stage, unless its weights exist."""
        if (self.folder / stage / WEIGHTS).is_file():
            logger.info("%s: already trained", stage)
            return
        (self.folder / SELECTION).unlink(missing_ok=True)
        stages = {
            "source": self._source,
            "adversarial": self._adversarial,
            "selftrain": self._selftrain,
            "distill": self._distill,
        }
        stages[stage]()
        if problem := waiting_for_frames(RunSummary.read(self.folder).metrics.get(stage, ())):
            logger.warning("%s: %s", stage, problem)

    def score_stage(self, stage: str) -> None:
        """Score a trained stage on the target's labeled validation frames, if there are any."""
        frames = self.data.val_frames
        if frames is None or not frames.labeled:
            return
        try:
            scores = stage_scores(self.folder / stage, self.config, frames, self.device)
        except DataError as error:
            logger.warning("%s: not scored: %s", stage, error)
            return
        self.data.bad_files |= dict.fromkeys(scores["failed"])
        self.scores[stage] = scores
        logger.info("%s", describe_scores(stage, scores, self.config))

    def _source(self) -> None:
        """Train a new network on the labeled source."""
        stage = self.config.source
        model = self.compilation.model(self.setup.new_model(self.setup.spec))
        loader = self.data.source_loader(
            "source", stage, size_hw=self.config.src_size, mirror=stage.flip
        )
        with closing(loader):
            average = train_supervised(
                model, loader, stage,
                amp=self.amp, make_loop=self._make_loop("source", stage.iterations, model.spec),
            )  # fmt: skip
        self._finish("source", average, model.spec, loader)

    def _adversarial(self) -> None:
        """Align the network of the source stage with the target."""
        stage = self.config.adversarial
        model = self.compilation.model(self.setup.model_before("adversarial"))
        spec = replace(model.spec, size_hw=self.config.size)
        src = self.data.source_loader("adversarial", stage, size_hw=self.config.src_size)
        tgt = self.data.target_loader("target", stage)
        with closing(src), closing(tgt):
            average = train_adversarial(
                model, src, tgt,
                aligner=self._new_aligner(model), amp=self.amp,
                make_loop=self._make_loop("adversarial", stage.iterations, spec),
            )  # fmt: skip
        self._finish("adversarial", average, spec, src, tgt)
        self._log_discriminator_health("adversarial")

    def _selftrain(self) -> None:
        """Train on the source and on the target as labeled by a mean teacher."""
        stage = self.config.selftrain
        model = self.setup.model_before("selftrain")
        spec = replace(model.spec, size_hw=self.config.size)
        tgt = self.data.target_loader("selftrain-target", stage)
        src = None
        if not stage.source_free:
            # The frames are mixed, so source frames have the target's size.
            src = self.data.source_loader("selftrain", stage, size_hw=self.config.size)
        with closing(tgt), closing(src) if src else nullcontext():
            average = train_self_training(
                model, src, tgt, stage,
                augmentation=self.data.augmentation,
                aligner=self._new_aligner(model) if stage.align else None,
                count_target=self._count_target, whole_target=self.data.whole_target,
                compiled=self.compilation.model, seed=self.data.seed("selftrain"), amp=self.amp,
                make_loop=self._make_loop("selftrain", stage.iterations, spec),
            )  # fmt: skip
        self._finish("selftrain", average, spec, *([src, tgt] if src else [tgt]))
        self._log_discriminator_health("selftrain")

    def _count_target(self, model: SegmentationModel) -> Tensor:
        """Return with which probabilities a network predicts the whole target."""
        if self.cluster is None:
            return count_all_confidences(model, self.data.whole_target(), amp=self.amp)
        frames, size_hw = self.data.tgt_frames, self.config.size
        return count_target_on_cluster(model, frames, size_hw, self.cluster, amp=self.amp)

    def _log_discriminator_health(self, stage: str) -> None:
        metrics = RunSummary.read(self.folder).metrics.get(stage, ())
        if health := discriminator_health(metrics):
            logger.info("%s: %s", stage, health)

    def _distill(self) -> None:
        """Train a new network on the pseudo-labels of the adapted one."""
        stage, data = self.config.distill, self.data
        teacher = self.setup.model_before("distill")
        pseudo_labels = self.folder / "distill" / "pseudo"
        if self.cluster is None:
            write_pseudo_labels(
                Predictor(teacher, self.device), data.tgt_frames, pseudo_labels,
                threshold=stage.threshold,
            )  # fmt: skip
        else:
            write_pseudo_labels_on_cluster(
                teacher, data.tgt_frames, pseudo_labels, self.cluster, threshold=stage.threshold
            )
        student = self.compilation.model(self.setup.new_model(self.setup.student_spec))
        tgt = data.pseudo_label_loader(pseudo_labels, stage)
        src = None
        if stage.source_weight:
            src = data.distill_source_loader(stage)
        with closing(tgt), closing(src) if src else nullcontext():
            average = train_student(
                student, teacher, tgt, src, stage,
                amp=self.amp, make_loop=self._make_loop("distill", stage.iterations, student.spec),
            )  # fmt: skip
        self._finish("distill", average, student.spec, *([src, tgt] if src else [tgt]))

    def _new_aligner(self, model: SegmentationModel) -> Aligner:
        """Return a new discriminator of the run's method for a network."""
        settings = self.config.adversarial
        context = MethodContext(
            model, settings, self.data.class_pixels, self.data.first_source_batches
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed + 1)
            method = make_method(self.config.method, context)
            heads = distributed.convert_sync_batch_norm(method.heads)
            networks = (method.discriminator.to(self.device), heads.to(self.device))
        for network in networks:
            if list(network.parameters()):
                self.compilation.network(network)
        return Aligner.create(method, settings)

    def _make_loop(self, stage: str, iterations: int, spec: ModelSpec) -> MakeLoop:
        def on_checkpoint(iteration: int, state: TrainingState) -> None:
            average = state["average"]
            assert isinstance(average, AveragedWeights)
            path = checkpoint_path(self.folder / stage, iteration)
            self._save_weights(path, stage, average, spec, iteration)

        callbacks = {} if self.tensorboard is None else self.tensorboard.callbacks(stage)
        return partial(
            TrainingLoop, self.folder / stage,
            iterations=iterations, device=self.device, save_every=self.config.save_every,
            checkpoint_every=self.config.checkpoint_every, on_checkpoint=on_checkpoint,
            timer=self.data.timer, on_start=self.compilation.start_iteration, **callbacks,
        )  # fmt: skip

    def _finish(
        self, stage: str, average: AveragedWeights, spec: ModelSpec, *loaders: BatchLoader
    ) -> None:
        """Write the final weights of a stage and delete its training state."""
        for loader in loaders:
            # Each process reads other files.
            for bad in distributed.all_gather(loader.bad):
                self.data.bad_files |= bad
        iterations = getattr(self.config, stage).iterations
        path = self.folder / stage / WEIGHTS
        self._save_weights(path, stage, average, spec, iterations)
        if self.tensorboard is not None:
            self.tensorboard.close()
        distributed.barrier()
        (self.folder / stage / STATE).unlink(missing_ok=True)

    def _result(self, stage: str, average: AveragedWeights) -> dict[str, Tensor]:
        """Return the weights of a stage, mixed with those that it started from."""
        fraction = self.config.selftrain.start_weight if stage == "selftrain" else 0.0
        if not fraction:
            return average.weights()
        return mix_weights(average.weights(), self.setup.weights_before(stage), fraction)

    def _save_weights(
        self, path: Path, stage: str, average: AveragedWeights, spec: ModelSpec, iteration: int
    ) -> None:
        if distributed.is_main_process():
            provenance = {
                "version": __version__,
                "stage": stage,
                "iteration": iteration,
                "config": self.config.to_dict(),
            }
            save_weights(path, self._result(stage, average), spec, provenance)
