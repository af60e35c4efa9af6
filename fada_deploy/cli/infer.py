"""`fada infer`: segment videos, images and live sources with an exported model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fada_deploy.cli.console import emit_json, log
from fada_deploy.cli.infer_setup import DROP_POLICIES, LEGEND_POSITIONS, Arguments
from fada_deploy.cli.options import (
    DEVICE_OPTION,
    JSON_OPTION,
    FiniteFloat,
    cluster_options,
    named_options,
    ray_options,
)

if TYPE_CHECKING:
    from fada_deploy.runtime.autotune import Autotuner


@click.command("infer")
@click.argument("source", nargs=-1, required=True, type=click.Path(readable=False))
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="Exported model, the folder of a run, or builtin. [default: the newest export that this "
    "machine can run, or else the built-in model]",
)
@click.option(
    "-o",
    "--out",
    metavar="PATH",
    help="Output folder; or an .mp4 file for a single video, or a .png or .jpg file for a single "
    "image; with --ray also an address such as s3://bucket/folder. [default: runs/infer-NNN]",
)
@click.option(
    "--save",
    metavar="KIND,…",
    default="overlay",
    show_default=True,
    help="Kinds of output, separated by commas: overlay (video, or JPEG per image), mask (PNG of "
    "class ids), mask-video (lossless video of class ids), color (PNG in class colors), "
    "color-video (video in class colors), npz (labels and confidence), json (class fractions); or "
    "none, with --show.",
)
@click.option(
    "--ids",
    type=click.Choice(["trainId", "labelId"]),
    default="trainId",
    show_default=True,
    help="Id convention of masks: Cityscapes trainId or labelId.",
)
@click.option(
    "--alpha",
    type=FiniteFloat(0, 1),
    metavar="FRACTION",
    default=0.5,
    show_default=True,
    help="Opacity of the class colors in overlays.",
)
@click.option(
    "--legend",
    type=click.Choice(LEGEND_POSITIONS),
    default="auto",
    show_default=True,
    help="Position of the legend with class names and pixel fractions; auto: the corner that hides "
    "least.",
)
@click.option("--contours", is_flag=True, help="Draw lines between classes in overlays.")
@click.option(
    "--side-by-side", is_flag=True, help="Put the original frame to the left of the overlay."
)
@click.option("--classes", metavar="NAME,…", help="Classes to draw in overlays. [default: all]")
@click.option(
    "--x264-preset",
    metavar="NAME",
    default="ultrafast",
    show_default=True,
    help="Encoder preset; slower presets (for example veryfast, medium) give smaller files.",
)
@click.option(
    "--video-hardware",
    type=click.Choice(["cuda"]),
    help="Decode and encode videos on this device. [default: the CPU]",
)
@DEVICE_OPTION
@click.option(
    "--backend",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="Inference backend: auto, onnxruntime, openvino or tensorrt.",
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    metavar="N",
    help="Frames per inference call. [default: the fixed batch size of the model, or 1]",
)
@click.option(
    "--show",
    is_flag=True,
    help="Show the overlay in a window; q or Esc closes it. Needs a display, and opencv-python "
    "instead of opencv-python-headless.",
)
@click.option("--watch", is_flag=True, help="SOURCE is a folder: process images as they are added.")
@click.option(
    "--drop-policy",
    type=click.Choice(DROP_POLICIES),
    help="Live sources: which frames to drop when inference is too slow. "
    "[default: wait for standard input and for files on a web server, drop-oldest otherwise]",
)
@click.option(
    "--deadline-ms",
    type=FiniteFloat(0, min_open=True),
    metavar="MS",
    help="Live sources: drop frames that waited longer than this before inference. "
    "[default: no limit]",
)
@click.option(
    "--reconnect-timeout",
    type=FiniteFloat(0),
    metavar="SECONDS",
    default=30.0,
    show_default=True,
    help="Live sources: seconds without a frame after which a source that has delivered frames is "
    "given up; one whose first connection fails is given up at once.",
)
@click.option(
    "--allow-unverified",
    is_flag=True,
    help="Run an engine that was never compared with its reference outputs.",
)
@click.option(
    "--rebuild",
    is_flag=True,
    help="Rebuild an engine that was built for another GPU or TensorRT version, from its ONNX "
    "file; needs --model.",
)
@click.option(
    "--recursive",
    is_flag=True,
    help="Also search the subfolders of folders; outputs get the same subfolders.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Continue an interrupted run in the folder --out: leave out the sources that it finished.",
)
@ray_options
@click.option(
    "--chunk-frames",
    type=click.IntRange(1),
    metavar="N",
    help="With --ray: approximate number of frames in a chunk of a video. [default: 600]",
)
@JSON_OPTION
def command(**options: Any) -> int:
    """Segment videos, images, folders, globs and live sources.

    \b
    fada infer drive.mp4
    fada infer drive.mp4 -o overlay.mp4
    fada infer 'frames/*.png' --save overlay,mask --ids labelId
    fada infer a.mp4 b.mp4 photos/ --out results --model model.onnx
    fada infer drives/ --recursive --out results
    fada infer rtsp://camera/stream --deadline-ms 100
    fada infer camera:0 camera:1 --show --save none
    fada infer incoming/ --watch --save mask
    fada infer drives/ --recursive --out s3://bucket/labels --ray
    ffmpeg … -f mpegts - | fada infer -

    Live sources are streams (rtsp://, http://, …), cameras (camera:N, or just N), standard input
    (-), and a watched folder. Several streams and cameras are read at the same time, each into its
    own video. Ctrl-C stops them and finalizes the output videos.

    Ctrl-C on files completes the outputs of the current file with the frames processed so far, and
    exits with 130. A second Ctrl-C quits at once and removes unfinished files. With --out FOLDER,
    the same command with --resume continues with the files that are left.

    Exit code 1 means that an input could not be read; all readable inputs are still processed.
    """
    arguments = Arguments(**options, named=named_options())
    if (cluster := cluster_options(options)) is None:
        return _infer_here(arguments)
    from fada_deploy.cli.infer_cluster import infer_on_cluster

    return infer_on_cluster(arguments, cluster)


def _infer_here(arguments: Arguments) -> int:
    """Run `fada infer` in this process; return the exit code."""
    from fada_deploy.cli.infer_display import describe, overlay_window, print_summary, to_document
    from fada_deploy.cli.infer_live import StopRequest, interruption, stop_on_signals
    from fada_deploy.cli.infer_output import has_frames, output_folder
    from fada_deploy.cli.infer_setup import (
        expected_frames,
        open_finished,
        open_input,
        open_model,
        save_options,
        start_autotuner,
        warn_about_ignored_options,
    )
    from fada_deploy.common.errors import InterruptedRunError
    from fada_deploy.runtime.writers.inference import run_inference
    from fada_deploy.runtime.writers.save import check_outputs

    output = save_options(arguments)
    sources = open_input(arguments)
    check_outputs(sources, output)
    warn_about_ignored_options(arguments, output.kinds, sources)
    stop = StopRequest(sources)
    frames = expected_frames(sources)
    segmenter, skipped = open_model(arguments, frames)
    with segmenter:
        autotuner = start_autotuner(arguments, segmenter, frames)
        for line in skipped:
            log(f"skipped {line}")
        log(f"model {segmenter.path}: {describe(segmenter)}")
        with (
            output_folder(output, arguments.out_path) as output,
            overlay_window(
                arguments.show, stop.stop_live, output, segmenter, sources, lambda: stop.requested
            ) as show,
            stop_on_signals(stop),
        ):
            finished = open_finished(arguments, segmenter, output, sources)
            summary = run_inference(
                segmenter, sources, output, on_result=show, stop=stop.files, finished=finished
            )
        if not has_frames(summary, sources, stopped=stop.requested):
            return 1
        document = to_document(summary, segmenter, skipped, sources, output)
    if arguments.as_json:
        emit_json(document)
    print_summary(document, is_live=any(source.is_live for source in sources))
    _report_autotuning(autotuner)
    if missing := interruption(summary):
        log(missing)
        return InterruptedRunError.exit_code
    return 1 if summary.errors else 0


def _report_autotuning(autotuner: Autotuner | None) -> None:
    if autotuner is None or not autotuner.fastest:
        return
    times = ", ".join(f"{name} {1000 * s:.1f}" for name, s in autotuner.seconds.items())
    outcome = (
        f"--backend auto will use {autotuner.fastest} from now on"
        if autotuner.is_remembered
        else "the result cannot be saved because the cache folder is not writable"
    )
    log(f"measured backends, ms per batch: {times}; {outcome}")
