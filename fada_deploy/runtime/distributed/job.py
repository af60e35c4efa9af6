"""Segment sources on a Ray cluster into the same files that one process writes."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fada_deploy.cluster.connection import LOCAL, ClusterOptions, worker_device
from fada_deploy.cluster.output_folder import PARTS, OutputFolder
from fada_deploy.cluster.pool import WorkerPool
from fada_deploy.common.errors import UsageError
from fada_deploy.common.progress import progress_bar
from fada_deploy.common.runs import FINISHED
from fada_deploy.runtime.backends.engine_file import sidecar_path
from fada_deploy.runtime.distributed.job_state import JobState, JobSummary
from fada_deploy.runtime.distributed.manifest import (
    Manifest,
)
from fada_deploy.runtime.distributed.tasks import (
    JobSource,
    WorkerSetup,
)
from fada_deploy.runtime.distributed.worker import InferenceWorker
from fada_deploy.runtime.parity import reference_path
from fada_deploy.runtime.sources.base import Source
from fada_deploy.runtime.sources.images import ImageSource
from fada_deploy.runtime.writers.finished import output_settings, source_state
from fada_deploy.runtime.writers.options import SaveOptions
from fada_deploy.runtime.writers.output import output_names

logger = logging.getLogger(__name__)

# Approximate number of frames in a chunk of a video. A chunk decodes up to one group of pictures
# more than it needs, which is 250 frames by x264's default.
CHUNK_FRAMES = 600


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model of a job; see `Segmenter`."""

    path: Path
    device: str = "auto"
    backend: str = "auto"
    batch: int | None = None
    allow_unverified: bool = False


def run_job(
    model: ModelOptions,
    sources: Sequence[Source],
    options: SaveOptions,
    output: OutputFolder,
    cluster: ClusterOptions,
    *,
    chunk_frames: int = CHUNK_FRAMES,
    resume: bool = False,
    stop: threading.Event | None = None,
) -> JobSummary:
    """Segment videos and images on a Ray cluster under a progress bar.

    Videos of at least two chunks are divided at keyframes. Memory in the driver and in the workers
    does not depend on the length of the videos.

    Args:
        model: The model; its files are sent to the workers.
        sources: Files and folders; see `open_sources`.
        options: What is written; its `out` is not used.
        output: Where it is written.
        cluster: The workers.
        chunk_frames: Approximate number of frames in a chunk of a video, and the largest number of
            images in a part of a folder.
        resume: Leave out the sources that an earlier job in the folder has finished, and the parts
            of others that it has.
        stop: When it is set, no further part is begun.

    Raises:
        DataError: The only source cannot be processed, or the manifest cannot be written.
        UsageError: `resume` is set, and the job in the folder had other settings; or the device of
            the model is a GPU and the workers have none.
        DeviceError: There is no cluster, or its workers cannot start.
        FadaError: The model cannot be opened.
    """
    start = time.perf_counter()
    settings = {**output_settings(model.path, options), "chunk_frames": chunk_frames}
    job_sources = _job_sources(sources, options, settings)
    manifest = Manifest(output, settings, resume=resume)
    if resume and not manifest.has_earlier_job and output.read(FINISHED) is not None:
        raise UsageError(
            f"--resume: the outputs in {output} were made without --ray; leave it out to "
            "continue, or leave out --resume to begin anew"
        )
    _check_names(job_sources, manifest)
    run, stop = uuid.uuid4().hex, stop or threading.Event()
    job = JobState(sources, job_sources, manifest, output, chunk_frames, stop, run)
    setup = WorkerSetup(
        model=model.path,
        files={} if cluster.address == LOCAL else _model_files(model.path),
        device=worker_device(model.device, cluster),
        backend=model.backend,
        batch=model.batch,
        allow_unverified=model.allow_unverified,
        options=options,
        output=output,
        run=run,
    )
    with closing(manifest), progress_bar(100, "segmenting", unit="%") as bar:
        job.show_progress(bar)
        begin = partial(_begin, manifest, output, resume=resume)
        # The records of an earlier job are kept until a worker is ready, so that it can still be
        # continued if there is no cluster, or none of its workers can open the model.
        if resume or not manifest.has_earlier_job:
            begin()
        if job.has_work:
            with WorkerPool(partial(InferenceWorker, setup), cluster) as pool:
                with closing(pool.run(job.take, stop, on_ready=begin)) as results:
                    for task, result in results:
                        job.receive(task, result)
                        job.show_progress(bar)
                job.summary.workers = pool.workers
    summary = job.finish()
    summary.seconds = time.perf_counter() - start
    return summary


def _begin(manifest: Manifest, output: OutputFolder, *, resume: bool) -> None:
    """Replace the records of an earlier job in the folder, unless this was done before."""
    if manifest.has_begun:
        return
    manifest.begin()
    # The list of `fada infer` without a cluster would no longer be true.
    output.remove(FINISHED)
    # Without a manifest, another model may have written to the folder since.
    if not resume or not manifest.has_earlier_job:
        output.remove(PARTS)


def _check_names(sources: Sequence[JobSource], manifest: Manifest) -> None:
    """Raise `UsageError` if a source would overwrite the outputs of another one of the job."""
    for source in sources:
        owner = manifest.outputs.get(source.output, source.absolute)
        if str(Path(owner).resolve()) != source.absolute:
            raise UsageError(
                f"--resume: {source.name} would overwrite the outputs of {owner}, which are named "
                f"{source.output}; name the same sources in the same order, or another --out"
            )


def _model_files(model: Path) -> dict[str, bytes]:
    """Return the content of the files of a model: itself, its sidecar and its reference outputs."""
    # The last one holds the weights of an ONNX file of more than 2 GB.
    others = sidecar_path(model), reference_path(model), model.with_name(f"{model.name}.data")
    return {path.name: path.read_bytes() for path in (model, *others) if path.is_file()}


def _job_sources(
    sources: Sequence[Source], options: SaveOptions, settings: dict[str, Any]
) -> list[JobSource]:
    names = output_names(sources, options.tree)
    result = []
    for source in sources:
        items = source.items if isinstance(source, ImageSource) else None
        files = [Path(source.name)] if items is None else list(items.values())
        job_source = JobSource(
            id="",
            name=source.name,
            output=names[source.name],
            items=items,
            size=max(1, sum(path.stat().st_size for path in files if path.is_file())),
        )
        key = [job_source.absolute, source_state(source), job_source.output, settings]
        id_ = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]
        result.append(replace(job_source, id=id_))
    return result
