"""The paths in the settings of a run: made absolute, replaced when data was moved, compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fada_deploy.common.errors import UsageError
from fada_deploy.common.runs import BUILTIN, final_weights
from fada_deploy.data import DATASETS, NAMES, default_root
from fada_deploy.training.config import RENDERED, RunConfig, Source


def with_roots(config: RunConfig, src_roots: Sequence[str], tgt_root: str | None) -> RunConfig:
    """Return the settings of a run whose data sets were moved to other folders.

    `src_roots` are those of the first sources with a folder of their own, in their order: a TOML
    file names its folders, and rendered scenes are found again. Raise `UsageError` if there are
    more than such sources, or if the target has no folder of its own.
    """
    sources = list(config.sources)
    with_folder = [i for i, source in enumerate(sources) if source.name in DATASETS]
    if len(src_roots) > len(with_folder):
        raise UsageError(
            f"--src-root: got {len(src_roots)}, and {len(with_folder)} sources of the run have a "
            f"folder; only {', '.join(NAMES)} have one"
        )
    if tgt_root is not None and config.tgt not in DATASETS:
        raise UsageError(
            f"--tgt-root is the folder of one of {', '.join(NAMES)}; leave it out for {config.tgt}"
        )
    for i, root in zip(with_folder, src_roots, strict=False):
        sources[i] = _with_absolute_source(replace(sources[i], root=root))
    if tgt_root is None:
        tgt_root = config.tgt_root
    elif Path(tgt_root).exists():
        tgt_root = str(Path(tgt_root).resolve())
    return replace(
        config, src_root=sources[0].root, extra_sources=tuple(sources[1:]), tgt_root=tgt_root
    )


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Make the paths of existing files absolute, so that the run works from any folder."""
    names = ["src_root", "tgt_root", "ego_mask", "label_space"]
    # Names of data sets and of kinds of weights are not paths, even if such a folder exists.
    names += [name for name in ("src", "tgt") if not _is_dataset(getattr(config, name))]
    names += ["init"] if config.init not in ("none", "imagenet") else []
    paths: dict[str, Any] = {
        name: str(Path(path).resolve())
        for name in names
        if (path := getattr(config, name)) is not None and Path(path).exists()
    }
    extra = tuple(_with_absolute_source(source) for source in config.extra_sources)
    # Networks are resolved to files, so that a resumed run uses the same ones.
    if config.start not in (None, str(BUILTIN)) and Path(str(config.start)).exists():
        paths["start"] = str(final_weights(Path(str(config.start))).resolve())
    network = config.translation.semantic_network
    if network is not None and (network == str(BUILTIN) or Path(network).exists()):
        network = str(final_weights(Path(network)).resolve())
        paths["translation"] = replace(config.translation, semantic_network=network)
    return replace(config, extra_sources=extra, **paths)


def _with_absolute_source(source: Source) -> Source:
    name, root = source.name, source.root
    if not _is_dataset(name) and Path(name).exists():
        name = str(Path(name).resolve())
    if root is not None and Path(root).exists():
        root = str(Path(root).resolve())
    return replace(source, name=name, root=root)


def source_files(source: Source) -> tuple[str, Path | None]:
    """Return what identifies the files of a source: its name, and its folder if it has one."""
    return _files(source.name, source.root)


def target_files(config: RunConfig) -> tuple[str, Path | None]:
    """Return what identifies the files of the target, as `source_files` does."""
    return _files(config.tgt, config.tgt_root)


def _files(name: str, root: str | None) -> tuple[str, Path | None]:
    if name not in DATASETS:
        return name, None
    return name, (default_root(name) if root is None else Path(root)).resolve()


def _is_dataset(name: str) -> bool:
    return name == RENDERED or name in DATASETS
