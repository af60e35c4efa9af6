"""A whole run: open the data, train the stages in order, score each, keep the weights.

`fada train` is a thin shell around `train`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fada_deploy import __version__
from fada_deploy.common.errors import DataError, FadaError, UsageError
from fada_deploy.common.files import LOCK, atomic_path, lock, remove_partial, write_text
from fada_deploy.common.label_space import load_label_space
from fada_deploy.common.runs import CONFIG, WEIGHTS, checkpoint_path
from fada_deploy.data import open_dataset
from fada_deploy.data.base import FrameDataset
from fada_deploy.evaluation import evaluate
from fada_deploy.training import distributed
from fada_deploy.training.config import STAGES, RunConfig
from fada_deploy.training.data.datasets import class_contents, fingerprint, open_target
from fada_deploy.training.data.loader import BatchLoader, Sampler
from fada_deploy.training.data.samplers import ClassBalancedSampler, ShuffledSampler
from fada_deploy.training.data.samples import PseudoLabeledSamples, SourceSamples, TargetSamples
from fada_deploy.training.device import bf16_pays, check_compiler, compiled
from fada_deploy.training.loop import LoopFactory, Parts, TrainingLoop
from fada_deploy.training.methods.alignment import make_method
from fada_deploy.training.model_setup import ModelSetup
from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel
from fada_deploy.training.optim import AveragedWeights
from fada_deploy.training.predict import Predictor, describe_views
from fada_deploy.training.reporting.run_summary import RunSummary, discriminator_health
from fada_deploy.training.reporting.tensorboard import TensorBoardLogger, require_tensorboard
from fada_deploy.training.stages.adversarial import train_adversarial
from fada_deploy.training.stages.distill import write_pseudo_labels
from fada_deploy.training.stages.source import train_supervised
from fada_deploy.training.weights.checkpoints import load_model, save_weights

Say = Callable[[str], None]
Load = SourceSamples | TargetSamples | PseudoLabeledSamples


@dataclass
class TrainingResult:
    """What a run came to: its folder, each stage's `scores.json`, and the files that could not be used.

    `frames` are the target's held-out frames, or else its training frames.
    """

    run: Path
    frames: FrameDataset | None = None
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    bad_files: dict[str, None] = field(default_factory=dict)


def train(
    config: RunConfig, run: Path, *, device: torch.device, say: Say, tensorboard: bool = False
) -> TrainingResult:
    """Train the stages of `config` that `run` has not finished yet; return scores and bad files.

    `tensorboard` also writes scalars and pictures to `run`/tensorboard.
    Raise `FadaError` with one line for anything that cannot work, before anything is trained.
    """
    with lock(run) if distributed.is_main() else nullcontext():
        try:
            with distributed.main_first():
                job = Run(config, run, device=device, say=say, tensorboard=tensorboard)
        except FadaError:
            # Nothing was made yet: leave no empty run behind.
            with suppress(OSError):
                (run / LOCK).unlink()
                run.rmdir()
            raise
        if distributed.is_main():
            remove_partial(run)
            save_config(config, run)
        say(
            f"run {run}, training on {device}"
            + (f", {distributed.size()} processes" * (distributed.size() > 1))
        )
        for line in job.networks.notes():
            say(line)
        train_stage = {"source": job.source, "adversarial": job.adversarial, "distill": job.distill}
        for stage in STAGES:
            if stage not in config.stages:
                continue
            if (run / stage / WEIGHTS).is_file():
                say(f"{stage}: already trained")
            else:
                train_stage[stage]()
            # The others go on when the weights are there and scored.
            if distributed.is_main():
                job.score(stage)
            distributed.wait()
    return job.outcome


class Run:
    """The data, networks and folders of one run."""

    def __init__(
        self, config: RunConfig, run: Path, *, device: torch.device, say: Say, tensorboard: bool
    ) -> None:
        if config.compile:
            check_compiler(device)
        if tensorboard:
            require_tensorboard()
        self.config, self.folder, self.device, self.say = config, run, device, say
        self.amp = config.amp == "bf16" or (config.amp == "auto" and bf16_pays(device))
        self.outcome = TrainingResult(run)
        self.space = load_label_space(config.label_space)
        # Whatever cannot work is said here, before any data is read.
        self.networks = ModelSetup(config, run, self.space, device)
        src_root = None if config.src_root is None else Path(config.src_root)
        self.source_frames = open_dataset(config.src, src_root, split="train", space=self.space)
        if not self.source_frames.labeled:
            raise DataError(
                f"{config.src}: some source frames have no labels; the source must be labeled"
            )
        self.target_frames, self.validation = open_target(
            config, run / "target_frames", self.space, self._left_out
        )
        self.outcome.frames = self.validation or self.target_frames
        self._check_data()
        self.board = None
        if tensorboard and distributed.is_main():
            self.board = TensorBoardLogger(run / "tensorboard", self.outcome.frames, device)

    def _check_data(self) -> None:
        """Remember which frames the run began with; refuse to go on with others."""
        path = self.folder / "data.json"
        frames = {"source": self.source_frames, "target": self.target_frames}
        found = {name: fingerprint(dataset) for name, dataset in frames.items()}
        if path.is_file():
            known = json.loads(path.read_text("utf-8"))
            changed = [name for name in found if found[name] != known.get(name)]
            if changed:
                raise DataError(
                    f"the frames or classes of the {' and '.join(changed)} changed since {self.folder} began; "
                    "put them back, or begin a new run"
                )
        else:
            write_text(path, json.dumps(found, indent=2))

    def _left_out(self, error: DataError) -> None:
        self.outcome.bad_files[str(error)] = None

    def source(self) -> None:
        """Train on the labeled source alone."""
        stage = self.config.source
        model = self._compiled(self.networks.fresh(self.networks.spec))
        load = SourceSamples(self.source_frames, self.config.src_size, stage.jitter, stage.flip)
        session = self._session("source", stage.iterations, model.spec)
        with closing(
            self._batches(load, self._source_order("source"), "source", stage.batch)
        ) as batches:
            average = train_supervised(model, batches, stage, amp=self.amp, open_loop=session)
        self._keep("source", average.weights(), model.spec, batches)

    def adversarial(self) -> None:
        """Adapt the source stage's network to the target."""
        stage = self.config.adversarial
        model = self._compiled(self.networks.before("adversarial"))
        spec = replace(model.spec, size_hw=self.config.size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed + 1)
            method = make_method(self.config.method, model, stage)
            discriminator = method.make_discriminator().to(self.device)
        if self.config.compile:
            compiled(discriminator)
        load = SourceSamples(self.source_frames, self.config.src_size, stage.jitter)
        tgt_load = TargetSamples(self.target_frames, self.config.size)
        order = self._source_order("adversarial")
        tgt_order = ShuffledSampler(len(self.target_frames), self._seed("target"))
        with (
            closing(self._batches(load, order, "adversarial", stage.batch)) as src,
            closing(self._batches(tgt_load, tgt_order, "target", stage.batch)) as tgt,
        ):
            average = train_adversarial(
                model, src, tgt, stage,
                method=method, discriminator=discriminator, amp=self.amp,
                open_loop=self._session("adversarial", stage.iterations, spec),
            )  # fmt: skip
        self._keep("adversarial", average.weights(), spec, src, tgt)
        if health := discriminator_health(RunSummary.read(self.folder).metrics["adversarial"]):
            self.say(f"adversarial: {health}")

    def distill(self) -> None:
        """Train a fresh student on the adapted network's pseudo-labels."""
        stage = self.config.distill
        teacher = self.networks.before("distill")
        pseudo = self.folder / "distill" / "pseudo"
        write_pseudo_labels(Predictor(teacher, self.device), self.target_frames, pseudo)
        student = self._compiled(self.networks.fresh(self.networks.student_spec))
        session = self._session("distill", stage.iterations, student.spec)
        order = ShuffledSampler(len(self.target_frames), self._seed("distill"))
        load = PseudoLabeledSamples(self.target_frames, pseudo, stage)
        with closing(self._batches(load, order, "distill", stage.batch)) as batches:
            average = train_supervised(student, batches, stage, amp=self.amp, open_loop=session)
        self._keep("distill", average.weights(), student.spec, batches)

    def score(self, stage: str) -> None:
        """Score a finished stage on the target's labeled validation frames, if it has them; once."""
        if self.validation is None:
            return
        path, weights = self.folder / stage / "scores.json", self.folder / stage / WEIGHTS
        if path.is_file() and path.stat().st_mtime_ns >= weights.stat().st_mtime_ns:
            document = json.loads(path.read_text("utf-8"))
        else:
            try:
                document = self._evaluate(weights, self.validation)
            except DataError as error:
                self.say(f"{stage}: not scored: {error}")
                return
            write_text(path, json.dumps(document, indent=2))
        self.outcome.bad_files |= dict.fromkeys(document["failed"])
        self.outcome.scores[stage] = document
        # The published figure is of the whole road, so it stands beside the last stage alone.
        is_last = stage == [s for s in STAGES if s in self.config.stages][-1]
        figure = self.config.published
        published = f" (published: {figure:.1f})" if is_last and figure is not None else ""
        where = f"on {document['frames']} frames at {document['input']}"
        views = f", {document['views']}" if document["views"] else ""
        self.say(f"{stage}: mIoU {100 * document['miou']:.1f}{published} {where}{views}")

    def _evaluate(self, weights: Path, validation: FrameDataset) -> dict[str, Any]:
        model, _ = load_model(weights, self.device)
        scales, mirrored = self.config.test_scales, self.config.test_flip
        predictor = Predictor(model, self.device, scales=scales, flip=mirrored)
        result = evaluate(predictor.labels, validation)
        height, width = model.spec.size_hw
        about = {
            "input": f"{width}x{height}",
            "views": describe_views(scales, mirrored),
            "frames": result.frames,
        }
        return {**about, "failed": list(result.failed), **result.scores.to_dict()}

    def _seed(self, purpose: str) -> int:
        purposes = ("source", "adversarial", "target", "distill")
        return int(
            np.random.SeedSequence([self.config.seed, purposes.index(purpose)]).generate_state(1)[0]
        )

    def _batches(self, load: Load, order: Sampler, purpose: str, batch: int) -> BatchLoader:
        frames = load.frames
        return BatchLoader(
            load, order, batch=batch, seed=self._seed(purpose), device=self.device,
            file=lambda index: str(frames.pairs[index].image),
            ego=load.ego,
        )  # fmt: skip

    def _source_order(self, purpose: str) -> Sampler:
        return ClassBalancedSampler(self._contents(), self._seed(purpose))

    def _contents(self) -> NDArray[np.bool_]:
        """Return which source file holds which class (N, K), read once a run."""
        path = self.folder / "source_classes.npz"
        with distributed.main_first():
            if not path.is_file():
                contents, bad = class_contents(self.source_frames)
                self.outcome.bad_files |= bad
                with atomic_path(path) as temporary:
                    np.savez_compressed(temporary, contents=contents)
        return np.asarray(np.load(path)["contents"], bool)

    def _session(self, stage: str, iterations: int, spec: ModelSpec) -> LoopFactory:
        def on_checkpoint(done: int, parts: Parts) -> None:
            average = parts["average"]
            assert isinstance(average, AveragedWeights)
            self._save(
                checkpoint_path(self.folder / stage, done), stage, average.weights(), spec, done
            )

        callbacks = {} if self.board is None else self.board.callbacks(stage)
        return partial(
            TrainingLoop, self.folder / stage,
            iterations=iterations, device=self.device, save_every=self.config.save_every,
            checkpoint_every=self.config.checkpoint_every, on_checkpoint=on_checkpoint, **callbacks,
        )  # fmt: skip

    def _compiled(self, model: SegmentationModel) -> SegmentationModel:
        if self.config.compile:
            for part in (model.feature_extractor["backbone"], model.classifier):
                compiled(part)
        return model

    def _keep(
        self, stage: str, weights: dict[str, torch.Tensor], spec: ModelSpec, *batches: BatchLoader
    ) -> None:
        for each in batches:
            self.outcome.bad_files |= each.bad
        iterations = getattr(self.config, stage).iterations
        self._save(self.folder / stage / WEIGHTS, stage, weights, spec, iterations)
        distributed.wait()
        (self.folder / stage / "state.pt").unlink(missing_ok=True)

    def _save(
        self,
        path: Path,
        stage: str,
        weights: dict[str, torch.Tensor],
        spec: ModelSpec,
        iteration: int,
    ) -> None:
        about: dict[str, Any] = {"version": __version__, "stage": stage, "iteration": iteration}
        if distributed.is_main():
            save_weights(path, weights, spec, {**about, "config": self.config.to_dict()})


def save_config(config: RunConfig, run: Path) -> None:
    """Write the run's `config.json`."""
    write_text(run / CONFIG, json.dumps(config.to_dict(), indent=2))


def load_config(run: Path) -> RunConfig:
    """Read a run's `config.json`; raise `UsageError` when there is none."""
    try:
        return RunConfig.from_dict(json.loads((run / CONFIG).read_text("utf-8")))
    except (OSError, TypeError, ValueError, KeyError) as error:
        why = error.strerror if isinstance(error, OSError) else f"{CONFIG}: {error}"
        raise UsageError(
            f"{run}: is no run ({why}); a run is a folder that `fada train` makes"
        ) from None
