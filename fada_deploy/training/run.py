"""A whole run: open the data, train the stages in order, score each, keep the weights.

`fada train` is a thin shell around `train`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from fada_deploy import __version__
from fada_deploy.common.errors import DataError, FadaError, UsageError
from fada_deploy.common.files import atomic_path, write_text
from fada_deploy.common.images import resize_frame, resize_labels
from fada_deploy.common.labels import IGNORE, LabelSpace, load_label_space
from fada_deploy.common.runs import CONFIG, WEIGHTS, final_weights
from fada_deploy.data import DATASETS, open_dataset
from fada_deploy.data.base import FrameDataset
from fada_deploy.data.unlabelled import open_recordings
from fada_deploy.evaluate import Evaluation, evaluate
from fada_deploy.training.batches import Batches, Order, Sample
from fada_deploy.training.checkpoints import load_backbone, load_segmenter, save_weights
from fada_deploy.training.config import STAGES, RunConfig
from fada_deploy.training.device import bf16_pays
from fada_deploy.training.models.discriminator import PixelDiscriminator
from fada_deploy.training.models.segmenter import ModelSpec, Segmenter, check_size
from fada_deploy.training.predict import Predictor
from fada_deploy.training.sampling import ClassBalancedOrder, ShuffledOrder
from fada_deploy.training.session import OpenSession, Session
from fada_deploy.training.stages.adversarial import train_adversarial
from fada_deploy.training.stages.distill import PseudoLabelled, write_pseudo_labels
from fada_deploy.training.stages.source import train_supervised
from fada_deploy.training.transforms import color_jitter, flip

Say = Callable[[str], None]
Load = Callable[[int, np.random.Generator], Sample]


@dataclass
class Outcome:
    """What a run came to: its folder, the scores of each stage, and the files that could not be used."""

    run: Path
    scores: dict[str, Evaluation] = field(default_factory=dict)
    bad_files: dict[str, None] = field(default_factory=dict)


def train(config: RunConfig, run: Path, *, device: torch.device, say: Say) -> Outcome:
    """Train the stages of `config` that `run` has not finished yet; return scores and bad files.

    Raise `FadaError` with one line for anything that cannot work, before anything is trained.
    """
    try:
        job = Run(config, run, device=device, say=say)
    except FadaError:
        # Nothing was made yet: leave no empty run behind.
        with suppress(OSError):
            run.rmdir()
        raise
    save_config(config, run)
    train_stage = {"source": job.source, "adversarial": job.adversarial, "distill": job.distill}
    for stage in STAGES:
        weights = run / stage / WEIGHTS
        if stage not in config.stages:
            continue
        if weights.is_file():
            say(f"{stage}: already trained")
        else:
            train_stage[stage]()
        job.score(stage)
    return job.outcome


def open_target(
    config: RunConfig, cache: Path, space: LabelSpace, say: Say, left_out: Callable[[DataError], None]
) -> tuple[FrameDataset, FrameDataset | None]:
    """Return the target's training frames and, where there are any, its held-out frames."""
    root = None if config.tgt_root is None else Path(config.tgt_root)
    path = Path(config.tgt)
    # A data set's name means the data set, also where a folder of that name lies about.
    if config.tgt not in DATASETS and path.suffix != ".toml":
        if not path.exists():
            known = ", ".join(DATASETS)
            raise UsageError(
                f"no target {config.tgt!r}: it is a data set ({known}), a .toml file, a video or a folder"
            )
        if (path / "leftImg8bit").is_dir():
            raise UsageError(f"{path} holds Cityscapes; say --tgt cityscapes --tgt-root {path}")
        mask = None if config.ego_mask is None else Path(config.ego_mask)
        train_set, held_out = open_recordings(
            path, cache=cache, space=space, ego_mask=mask, say=say, left_out=left_out
        )
        return train_set, held_out if len(held_out) else None
    if config.ego_mask is not None:
        raise UsageError("--ego-mask is for recordings; a custom data set names its own, [labels] ego_mask")
    train_set = open_dataset(config.tgt, root, split="train", space=space)
    try:
        return train_set, open_dataset(config.tgt, root, split="val", space=space)
    except (DataError, UsageError) as error:
        say(f"no validation split, so nothing is scored: {error}")
        return train_set, None


class Run:
    """The data, networks and folders of one run."""

    def __init__(self, config: RunConfig, run: Path, *, device: torch.device, say: Say) -> None:
        self.config, self.folder, self.device, self.say = config, run, device, say
        self.amp = config.amp == "bf16" or (config.amp == "auto" and bf16_pays(device))
        self.outcome = Outcome(run)
        self.space = load_label_space(config.label_space)
        frozen = config.norm == "frozen" or (config.norm == "auto" and config.init != "none")
        if frozen and config.init == "none" and config.start is None:
            raise UsageError(
                "norm = frozen needs trained statistics: give --init FILE with ImageNet weights, or let "
                "norm be batch (frozen normalisation over random weights cannot learn)"
            )
        alone = [name for name in config.stages if getattr(config, name).batch < 2]
        if alone and not frozen:
            raise UsageError(f"trainable normalisation needs a batch of 2 or more; found 1 in {', '.join(alone)}")
        self.spec = ModelSpec(config.backbone, self.space, config.size, "frozen" if frozen else "batch")
        for size in {config.size, config.distill.size} if "distill" in config.stages else {config.size}:
            check_size(config.backbone, size)
        self.fresh()  # Bad --init is said before the data is read.
        src_root = None if config.src_root is None else Path(config.src_root)
        self.source_frames = open_dataset(config.src, src_root, split="train", space=self.space)
        if not self.source_frames.labelled:
            raise DataError(f"{config.src}: some source frames have no labels; the source must be labelled")
        self.target_frames, self.validation = open_target(
            config, run / "target_frames", self.space, say, self._left_out
        )

    def _left_out(self, error: DataError) -> None:
        self.outcome.bad_files[str(error)] = None

    def fresh(self, spec: ModelSpec | None = None) -> Segmenter:
        """Return the network as it is before any training: a pure function of seed and init."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            model = Segmenter(spec or self.spec)
        if self.config.init != "none":
            load_backbone(model, Path(self.config.init))
        return model.to(self.device)

    def source(self) -> None:
        """Train on the labelled source alone."""
        stage = self.config.source
        model = self.fresh()
        load = partial(self._source_sample, jitter=stage.jitter, mirror=stage.flip)
        with closing(self._batches(load, self._source_order("source"), "source", stage.batch)) as batches:
            average = train_supervised(
                model, batches, stage, amp=self.amp, open_session=self._session("source", stage.iterations)
            )
        self._keep("source", average.weights(), model.spec, batches)

    def adversarial(self) -> None:
        """Adapt the source stage's network to the target."""
        stage = self.config.adversarial
        model = self._before("adversarial")
        if model.spec.backbone != self.config.backbone:
            raise UsageError(f"--start has a {model.spec.backbone}; give --backbone {model.spec.backbone}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed + 1)
            outputs = 1 if stage.encodings == "two-way" else self.space.num_classes
            discriminator = PixelDiscriminator(model.channels, outputs).to(self.device)
        load = partial(self._source_sample, jitter=stage.jitter, mirror=0.0)
        order = self._source_order("adversarial")
        src_ego = _ego(self.source_frames, self.config.src_size)
        tgt_order = ShuffledOrder(len(self.target_frames), self._seed("target"))
        tgt_ego = _ego(self.target_frames, self.config.size)
        with (
            closing(self._batches(load, order, "adversarial", stage.batch, src_ego)) as src,
            closing(self._batches(self._target_sample, tgt_order, "target", stage.batch, tgt_ego)) as tgt,
        ):
            average = train_adversarial(
                model, src, tgt, stage,
                discriminator=discriminator, amp=self.amp,
                open_session=self._session("adversarial", stage.iterations),
            )  # fmt: skip
        self._keep("adversarial", average.weights(), replace(model.spec, size_hw=self.config.size), src, tgt)

    def distill(self) -> None:
        """Train a fresh student on the adapted network's pseudo-labels."""
        stage = self.config.distill
        teacher = self._before("distill")
        pseudo = self.folder / "distill" / "pseudo"
        write_pseudo_labels(Predictor(teacher, self.device), self.target_frames, pseudo)
        student = self.fresh(replace(self.spec, size_hw=stage.size))
        order = ShuffledOrder(len(self.target_frames), self._seed("distill"))
        load = PseudoLabelled(self.target_frames, pseudo, stage)
        with closing(self._batches(load, order, "distill", stage.batch)) as batches:
            average = train_supervised(
                student, batches, stage, amp=self.amp, open_session=self._session("distill", stage.iterations)
            )
        self._keep("distill", average.weights(), student.spec, batches)

    def score(self, stage: str) -> None:
        """Score a finished stage on the target's labelled validation frames, if it has them."""
        if self.validation is None or not self.validation.labelled:
            return
        model, _ = load_segmenter(self.folder / stage / WEIGHTS, self.device)
        result = evaluate(Predictor(model, self.device).labels, self.validation)
        self.outcome.scores[stage] = result
        height, width = model.spec.size_hw
        document = {"input": f"{width}x{height}", "frames": result.frames, **result.scores.to_dict()}
        write_text(self.folder / stage / "scores.json", json.dumps(document, indent=2))
        self.say(f"{stage}: mIoU {100 * result.scores.miou:.1f} on {result.frames} frames at {width}x{height}")

    def _before(self, stage: str) -> Segmenter:
        """Return the network that a stage builds on: the nearest stage's before it, or `start`'s."""
        earlier = [self.folder / name / WEIGHTS for name in reversed(STAGES[: STAGES.index(stage)])]
        weights = next((path for path in earlier if path.is_file()), None)
        if weights is None:
            if self.config.start is None:
                raise UsageError(
                    f"{stage} builds on an earlier stage; add source to --stages, or give --start RUN"
                )
            weights = final_weights(Path(self.config.start))
        model, _ = load_segmenter(weights, self.device)
        if model.spec.space != self.space:
            raise UsageError(
                f"{weights} tells {model.spec.space.name} apart, this run {self.space.name}; "
                "give --label-space what it was trained with"
            )
        return model

    def _seed(self, purpose: str) -> int:
        purposes = ("source", "adversarial", "target", "distill")
        return int(np.random.SeedSequence([self.config.seed, purposes.index(purpose)]).generate_state(1)[0])

    def _batches(
        self, load: Load, order: Order, purpose: str, batch: int, ego: NDArray[np.bool_] | None = None
    ) -> Batches:
        return Batches(load, order, batch=batch, seed=self._seed(purpose), device=self.device, ego=ego)

    def _source_order(self, purpose: str) -> Order:
        return ClassBalancedOrder(self._contents(), self._seed(purpose))

    def _source_sample(
        self, index: int, rng: np.random.Generator, *, jitter: tuple[float, float, float, float], mirror: float
    ) -> Sample:
        frame, labels = self.source_frames.pair(index)
        size = self.config.src_size
        frame = color_jitter(resize_frame(frame, size), jitter, rng)
        return flip(frame, resize_labels(labels, size), mirror, rng)

    def _target_sample(self, index: int, rng: np.random.Generator) -> Sample:
        frame = resize_frame(self.target_frames.image(index), self.config.size)
        # The target's labels are never read.
        return frame, np.full(self.config.size, IGNORE, np.uint8)

    def _contents(self) -> NDArray[np.bool_]:
        """Return which source file holds which class (N, K), read once a run."""
        path = self.folder / "source_classes.npz"
        if not path.is_file():
            contents, bad = class_contents(self.source_frames)
            self.outcome.bad_files |= bad
            with atomic_path(path) as temporary:
                np.savez_compressed(temporary, contents=contents)
        return np.asarray(np.load(path)["contents"], bool)

    def _session(self, stage: str, iterations: int) -> OpenSession:
        suggestion = None
        if self.device.type == "cpu" and self.config.preset == "paper":
            suggestion = "this is the paper's preset on a CPU; --preset small is made for it"
        return partial(
            Session, self.folder / stage,
            iterations=iterations, device=self.device, save_every=self.config.save_every, suggestion=suggestion,
        )  # fmt: skip

    def _keep(self, stage: str, weights: dict[str, torch.Tensor], spec: ModelSpec, *batches: Batches) -> None:
        for each in batches:
            self.outcome.bad_files |= each.bad
        provenance: dict[str, Any] = {"version": __version__, "stage": stage, "config": self.config.to_dict()}
        save_weights(self.folder / stage / WEIGHTS, weights, spec, provenance)
        (self.folder / stage / "state.pt").unlink(missing_ok=True)


def _ego(frames: FrameDataset, size_hw: tuple[int, int]) -> NDArray[np.bool_] | None:
    return None if frames.ego_mask is None else frames.ego(size_hw)


def class_contents(dataset: FrameDataset) -> tuple[NDArray[np.bool_], dict[str, None]]:
    """Return which file holds which class, (N, K) bool, and a line for each file that cannot be read.

    A bad file holds nothing, so that class-balanced sampling never draws it.
    """
    contents = np.zeros((len(dataset), dataset.space.num_classes), bool)
    bad: dict[str, None] = {}

    def read(i: int) -> None:
        try:
            present = np.bincount(dataset.labels(i).ravel(), minlength=256) > 0
            contents[i] = present[: dataset.space.num_classes]
        except DataError as error:
            bad[str(error)] = None

    with ThreadPoolExecutor() as pool:
        list(tqdm(pool.map(read, range(len(dataset))), total=len(dataset), desc="source classes", disable=None))
    if len(bad) == len(dataset):
        raise DataError(f"no source label can be used, the first: {next(iter(bad))}")
    return contents, bad


def save_config(config: RunConfig, run: Path) -> None:
    """Write the run's `config.json`."""
    write_text(run / CONFIG, json.dumps(config.to_dict(), indent=2))


def load_config(run: Path) -> RunConfig:
    """Read a run's `config.json`; raise `UsageError` when there is none."""
    try:
        return RunConfig.from_dict(json.loads((run / CONFIG).read_text("utf-8")))
    except (OSError, TypeError, ValueError, KeyError) as error:
        raise UsageError(f"{run}: no run to resume ({error})") from None
