"""Translate the sources of a run before its stages, if the style `cyclegan` is set."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fada_deploy.common.errors import ModelError, UsageError, one_line
from fada_deploy.common.files import atomic_path
from fada_deploy.common.images import read_rgb, resize_frame, write_image
from fada_deploy.data.base import FrameDataset, evenly_spaced
from fada_deploy.training import distributed
from fada_deploy.training.config import RunConfig
from fada_deploy.training.data.run_data import RunData
from fada_deploy.training.loop import STATE, TrainingLoop
from fada_deploy.training.stage_config import TranslationStage
from fada_deploy.training.stages.translation import (
    SemanticConsistency,
    TranslationNetworks,
    train_translation,
    translated_frames,
    write_translations,
)
from fada_deploy.training.weights.checkpoints import load_model, write_errors

logger = logging.getLogger(__name__)

# In the folder of a run: networks, translated frames and examples of them.
FOLDER = "translation"
_NETWORKS, _FRAMES = "networks.safetensors", "frames"
COMPLETE, _EXAMPLES = "complete", "examples.jpg"


def check_translation(config: RunConfig, folder: Path) -> None:
    """Check what the translation still needs.

    Raise `UsageError` if several processes would have to train it, `ModelError` if the network for
    its semantic consistency cannot be read.
    """
    network = config.translation.semantic_network
    if config.style != "cyclegan":
        if network is not None:
            logger.warning("translation.semantic_network is not used without --style cyclegan")
        return
    if (folder / FOLDER / COMPLETE).is_file():
        return
    if network is not None and not (folder / FOLDER / _NETWORKS).is_file():
        load_model(Path(network))
    if distributed.world_size() > 1:
        raise UsageError(
            "style=cyclegan: several processes cannot train the translation; start the run in one "
            "process, stop it with Ctrl-C after the message 'translation finished', and resume it "
            "with torchrun"
        )


def translate_sources(
    config: RunConfig, folder: Path, data: RunData, *, device: torch.device, amp: bool
) -> None:
    """Make `data` read translated source frames, if the settings ask for it.

    Train the translation and write the frames, unless the run has them; several processes do not
    divide this work.
    """
    if config.style != "cyclegan" or data.sources is None:
        return
    folder, size_hw = folder / FOLDER, config.src_size
    if not (folder / COMPLETE).is_file():
        networks = _trained_networks(config, folder, data, device=device, amp=amp)
        # Originals that are read once are not cached.
        originals = replace(data.sources.frames, cache=None)
        errors = write_translations(
            networks.to_target, originals, folder / _FRAMES, size_hw, amp=amp
        )
        data.bad_files |= dict.fromkeys(errors)
        (folder / COMPLETE).touch()
        logger.info("translation finished")
    translated = translated_frames(data.sources.frames, folder / _FRAMES, size_hw)
    if not (folder / _EXAMPLES).is_file() and distributed.is_main_process():
        _write_examples(data.sources.frames, translated, folder / _EXAMPLES, size_hw)
    data.use_sources(translated)


def _trained_networks(
    config: RunConfig, folder: Path, data: RunData, *, device: torch.device, amp: bool
) -> TranslationNetworks:
    stage = config.translation
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 2)
        networks = TranslationNetworks(stage).to(device)
    weights = folder / _NETWORKS
    if weights.is_file():
        try:
            networks.load_state_dict(load_file(weights, device=str(device)))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"{weights}: damaged ({one_line(error)}); delete it to train the translation again"
            ) from None
        return networks
    logger.info("translation: training a CycleGAN for %d iterations", stage.iterations)
    semantic = _semantic_consistency(stage, device)
    src, tgt = data.translation_loaders(stage)
    with closing(src), closing(tgt):
        train_translation(
            networks, src, tgt, stage,
            seed=data.seed("translation"), amp=amp, semantic=semantic,
            make_loop=partial(
                TrainingLoop, folder,
                iterations=stage.iterations, device=device, save_every=config.save_every,
                timer=data.timer,
            ),
        )  # fmt: skip
    data.bad_files |= src.bad | tgt.bad
    with write_errors(weights), atomic_path(weights) as temporary:
        save_file({k: v.contiguous() for k, v in networks.state_dict().items()}, temporary)
    (folder / STATE).unlink(missing_ok=True)
    return networks


def _semantic_consistency(
    stage: TranslationStage, device: torch.device
) -> SemanticConsistency | None:
    if stage.semantic_network is None:
        return None
    network, _ = load_model(Path(stage.semantic_network), device)
    logger.info("translation: keeping the labels of %s", stage.semantic_network)
    return SemanticConsistency(network, stage.semantic_weight)


def _write_examples(
    frames: FrameDataset, translated: FrameDataset, path: Path, size_hw: tuple[int, int]
) -> None:
    """Write an image of four frames, each above its translation."""
    columns = []
    for i in evenly_spaced(len(frames), 4):
        if translated.pairs[i].image.is_file():
            pair = resize_frame(frames.image(i), size_hw), read_rgb(translated.pairs[i].image)
            columns.append(np.vstack(pair))
    if columns:
        write_image(path, np.hstack(columns))
        logger.info("examples of translated source frames: %s", path)
