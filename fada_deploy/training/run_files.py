"""The files of a run that several commands read: its settings and the fingerprints of its data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from fada_deploy.common import documents
from fada_deploy.common.errors import DataError, ModelError, UsageError
from fada_deploy.common.files import LOCK, write_text
from fada_deploy.common.runs import CONFIG, FINGERPRINTS, not_a_run
from fada_deploy.data.base import FrameDataset
from fada_deploy.training.config import RunConfig
from fada_deploy.training.data.datasets import fingerprint, size_fingerprint
from fada_deploy.training.data.sources import label_fingerprint


def save_config(config: RunConfig, run: Path) -> None:
    """Write the settings to the run's `config.json`."""
    write_text(run / CONFIG, json.dumps(config.to_dict(), indent=2))


def load_config(run: Path) -> RunConfig:
    """Read the settings in a run's `config.json`.

    Raise `ModelError` if the folder is not a run or its settings cannot be read.
    """
    path = run / CONFIG
    try:
        text = path.read_bytes()
    except OSError as error:
        problem = f"{path} cannot be read ({error.strerror})" if path.exists() else not_a_run(run)
        raise ModelError(problem) from None
    remedy = "restore the file, or start a new run"
    document = documents.read_json(
        text, dict[str, object], where=str(path), remedy=remedy, error=ModelError, file_names=True
    )
    try:
        return RunConfig.from_dict(document, where=str(path), remedy=remedy)
    except UsageError as error:
        raise ModelError(str(error)) from None


def check_fingerprints(
    run: Path, datasets: Mapping[str, FrameDataset], sources: Sequence[FrameDataset]
) -> None:
    """Store the fingerprint of each data set in a new run; compare it in a resumed one.

    Raise `DataError` if the frames or classes of a data set, the sizes of its files, or the
    encoding or ego mask of a source, have changed since the run began.
    """
    path = run / FINGERPRINTS
    fingerprints = {name: fingerprint(dataset) for name, dataset in datasets.items()}
    if sources:
        fingerprints["labels"] = label_fingerprint(sources)
    fingerprints["sizes"] = size_fingerprint(datasets)
    if not path.is_file():
        write_text(path, json.dumps(fingerprints, indent=2))
        return
    stored = documents.read_json(
        path.read_bytes(), dict[str, str], where=str(path), remedy="start a new run"
    )
    # Earlier versions did not store these.
    stored = {name: fingerprints.get(name, "") for name in ("labels", "sizes")} | stored
    changed = [name for name in fingerprints if fingerprints[name] != stored.get(name)]
    if changed:
        if domains := [name for name in changed if name in datasets]:
            what = "frames or classes of the " + " and ".join(domains)
        elif "labels" in changed:
            what = "encoding or ego mask of a source"
        else:
            what = "contents of frames or label files"
        raise DataError(
            f"{what} have changed since the run {run} began; restore them, or start a new run"
        )


def remove_empty_run(run: Path, *, is_new: bool) -> None:
    """Remove the folder of a run in which nothing was trained, and its settings if `is_new`."""
    with suppress(OSError):
        (run / LOCK).unlink()
        if is_new:
            (run / CONFIG).unlink()
        run.rmdir()
