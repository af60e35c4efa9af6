"""`fada infer --ray`: segment files on a Ray cluster."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fada_deploy.cli.console import emit_json, library_output_hidden, log
from fada_deploy.cli.infer_setup import Arguments

if TYPE_CHECKING:
    from fada_deploy.cluster.connection import ClusterOptions
    from fada_deploy.cluster.output_folder import OutputFolder
    from fada_deploy.common.metadata import ModelMetadata
    from fada_deploy.runtime.distributed.job_state import JobSummary
    from fada_deploy.runtime.writers.save import SaveOptions


@dataclass(frozen=True)
class _Backend:
    name: str
    device: str


@dataclass(frozen=True)
class _Model:
    """The model of a job, which only the workers open."""

    path: Path
    metadata: ModelMetadata
    backend: _Backend
    skipped: tuple[str, ...] = ()


def infer_on_cluster(arguments: Arguments, cluster: ClusterOptions) -> int:
    """Run `fada infer` on a Ray cluster; return the exit code."""
    from fada_deploy.cli.infer_display import print_summary, to_document
    from fada_deploy.cli.infer_live import StopRequest, stop_on_signals
    from fada_deploy.cli.infer_output import has_frames
    from fada_deploy.cli.infer_setup import open_input, save_options, warn_about_ignored_options
    from fada_deploy.common.errors import InterruptedRunError, UsageError
    from fada_deploy.common.system import require_package
    from fada_deploy.runtime.distributed.job import CHUNK_FRAMES, ModelOptions, run_job
    from fada_deploy.runtime.writers.save import check_outputs

    require_package("ray", "ray")
    _refuse_options(arguments)
    options = save_options(arguments)
    if options.file is not None:
        raise UsageError(f"--out {arguments.out}: with --ray the outputs are written to a folder")
    sources = open_input(arguments)
    if live := [source.name for source in sources if source.is_live]:
        raise UsageError(f"{live[0]} is a live source; --ray is for files and folders")
    check_outputs(sources, options)
    warn_about_ignored_options(arguments, options.kinds, sources)
    model = _find_model(arguments, cluster)
    stop = StopRequest(sources)
    with _output(arguments, options) as output:
        with stop_on_signals(stop), library_output_hidden():
            summary = run_job(
                ModelOptions(
                    path=model.path,
                    device=arguments.device,
                    backend=arguments.backend,
                    batch=arguments.batch,
                    allow_unverified=arguments.allow_unverified,
                ),
                sources,
                options,
                output,
                cluster,
                chunk_frames=arguments.chunk_frames or CHUNK_FRAMES,
                resume=arguments.resume,
                stop=stop.files,
            )
        if not has_frames(summary, sources, stopped=stop.files.is_set()):
            return 1
        opened = _Model(model.path, model.metadata, _backend_of(summary))
        document = to_document(summary, opened, model.skipped, sources, options)
        document["workers"] = len(summary.workers)
        document["out"] = str(output)
        document["saved"] = {kind: f"{output}/{kind}" for kind in document["saved"]}
    if arguments.as_json:
        emit_json(document)
    print_summary(document, is_live=False)
    if summary.unread:
        log(
            f"interrupted: {summary.unread} source{'s' * (summary.unread != 1)} not finished; to "
            f"continue, repeat the command with --resume --out {shlex.quote(str(output))}"
        )
        return InterruptedRunError.exit_code
    return 1 if summary.errors else 0


def _refuse_options(arguments: Arguments) -> None:
    from fada_deploy.common.errors import UsageError

    refused = {
        "--show": arguments.show,
        "--watch": arguments.watch,
        "--rebuild": arguments.rebuild,
        "--video-hardware": arguments.video_hardware,
    }
    for option, is_given in refused.items():
        if is_given:
            raise UsageError(f"{option} cannot be combined with --ray")


def _find_model(arguments: Arguments, cluster: ClusterOptions) -> _Model:
    """Return the model that --model names, or else the newest one that this machine can run."""
    from fada_deploy.cli.newest_model import open_newest
    from fada_deploy.cluster.connection import worker_device
    from fada_deploy.common.runs import exported_model, warn_if_outdated
    from fada_deploy.runtime.backend_selection import metadata_of
    from fada_deploy.runtime.backends.base import cuda_index
    from fada_deploy.runtime.backends.gpu import find_gpu

    skipped: list[str] = []
    if arguments.model is not None:
        path = exported_model(arguments.model)
        metadata = metadata_of(path)
    else:
        # The workers have GPUs, this machine need not have one.
        device = worker_device(arguments.device, cluster)
        has_device = cuda_index(device) is None or find_gpu() is not None
        segmenter, skipped = open_newest(
            device=device if has_device else "cpu",
            backend=arguments.backend,
            batch=arguments.batch,
            allow_unverified=arguments.allow_unverified,
        )
        with segmenter:
            path, metadata = segmenter.path, segmenter.metadata
    warn_if_outdated(path, metadata.provenance)
    for line in skipped:
        log(f"skipped {line}")
    log(f"model {path}")
    return _Model(path, metadata, _Backend("", ""), tuple(skipped))


def _backend_of(summary: JobSummary) -> _Backend:
    """Return the backends and devices of the workers, which usually are the same."""
    details = [worker.details for worker in summary.workers]
    names = dict.fromkeys(str(each["backend"]) for each in details)
    devices = dict.fromkeys(str(each["device"]) for each in details)
    return _Backend(", ".join(names), ", ".join(devices))


@contextmanager
def _output(arguments: Arguments, options: SaveOptions) -> Iterator[OutputFolder]:
    """Yield the output folder; a local one is locked."""
    from fada_deploy.cli.infer_output import output_folder
    from fada_deploy.cluster.output_folder import OutputFolder

    if arguments.out is not None and arguments.is_address:
        yield OutputFolder(arguments.out)
        return
    with output_folder(options, arguments.out_path) as local:
        yield OutputFolder(local.out)
