"""Check video codecs, compiled kernels, CPU cores, the display and disks."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fada_deploy.common.errors import one_line
from fada_deploy.common.extras import install_command
from fada_deploy.inspection.doctor.check import Check, is_installed

_LOW_DISK_BYTES = 2_000_000_000
_REINSTALL_PYAV = "pip install --force-reinstall --only-binary av av"
_MAX_GRAY_ERROR = 8  # of 255, for three H.264 frames


def video_checks() -> Iterator[Check]:
    """Write a video of three frames as `fada infer` does, and read it back."""
    import av
    import numpy as np

    from fada_deploy.common.video import open_video, upright_rgb
    from fada_deploy.runtime.writers.video_writer import VideoWriter

    missing = [name for name in ("h264", "libx264") if name not in av.codecs_available]
    if missing:
        detail = f"PyAV {av.__version__} lacks the codec {' and '.join(missing)}"
        yield Check("video", "problem", detail, _REINSTALL_PYAV)
        return
    grays = (40, 120, 200)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        with VideoWriter(path, (64, 96), fps=25) as writer:
            for gray in grays:
                writer.write(np.full((64, 96, 3), gray, np.uint8))
        container, stream = open_video(path)
        with container:
            means = [float(upright_rgb(frame).mean()) for frame in container.decode(stream)]
    if len(means) == len(grays) and all(
        abs(mean - gray) < _MAX_GRAY_ERROR for mean, gray in zip(means, grays, strict=True)
    ):
        yield Check("video", "ok", f"PyAV {av.__version__} writes and reads H.264")
    else:
        detail = f"PyAV {av.__version__} reads frames with mean {means}, written were {grays}"
        yield Check("video", "problem", detail, _REINSTALL_PYAV)
    yield from _hardware_decoder_check()


def kernel_check() -> Iterator[Check]:
    """Check that numba compiles the kernels of the runtime."""
    from fada_deploy.runtime.kernels.loader import KernelLoader

    if not is_installed("numba"):
        detail = "numba is not installed; upsampling, resizing and drawing are slower without it"
        yield Check("kernels", "warning", detail, install_command("fast"))
    elif KernelLoader().wait():
        yield Check("kernels", "ok", "upsampling, resizing and drawing are compiled")
    else:
        reason = "unknown reason"
        try:
            from fada_deploy.runtime.kernels import (  # noqa: F401
                draw_compiled,
                resize_compiled,
                upsample_compiled,
            )
        except Exception as error:
            reason = one_line(error, with_type=True)
        detail = f"numba cannot compile them ({reason}); upsampling and drawing are slower"
        yield Check("kernels", "warning", detail, "pip install --force-reinstall numba")


def core_checks() -> Iterator[Check]:
    """Report the usable CPU cores, and compare them with OMP_NUM_THREADS."""
    from fada_deploy.common.system import cpu_quota, usable_cores

    usable, total, quota = usable_cores(), os.cpu_count() or 1, cpu_quota()
    detail = f"{usable} of {total} usable" if usable != total else f"{usable}"
    if quota is not None:
        detail += f"; the container is limited to the processor time of {quota:g}"
    yield Check("cores", "ok", detail)
    value = os.environ.get("OMP_NUM_THREADS", "")
    threads = value.partition(",")[0].strip()
    if value and not (threads.isdigit() and int(threads) > 0):
        detail = f"{value!r} is not a number of threads"
        yield Check("OMP_NUM_THREADS", "warning", detail, "unset OMP_NUM_THREADS")
    elif value and int(threads) > usable:
        cores_text = f"{usable} usable core{'s' if usable > 1 else ''}"
        detail = f"{value} threads on {cores_text} slow each other down"
        yield Check("OMP_NUM_THREADS", "warning", detail, f"export OMP_NUM_THREADS={usable}")
    elif value:
        yield Check("OMP_NUM_THREADS", "ok", value)


def display_check() -> Iterator[Check]:
    """Check whether `fada infer --show` can open a window."""
    import cv2

    lines = [
        line.split(":", 1)[1].strip()
        for line in cv2.getBuildInformation().splitlines()
        if "GUI:" in line
    ]
    gui = lines[0] if lines and lines[0] else "unknown"
    variables = [
        f"{name}={os.environ[name]}"
        for name in ("WAYLAND_DISPLAY", "DISPLAY")
        if os.environ.get(name)
    ]
    screen = "a screen" if sys.platform in ("darwin", "win32") else ", ".join(variables)
    windows = "no window support" if gui == "NONE" else f"windows by {gui}"
    detail = f"{screen or 'no screen'}, OpenCV {cv2.__version__} with {windows}"
    if screen and gui != "NONE":
        yield Check("display", "ok", detail)
    elif screen:
        swap = "pip uninstall -y opencv-python-headless && pip install opencv-python"
        yield Check("display", "warning", f"{detail}; --show cannot open a window", swap)
    else:
        yield Check("display", "info", f"{detail}; --show needs a screen, for example ssh -X")


def disk_checks() -> Iterator[Check]:
    """Check that the folders of runs and caches are writable and have free space."""
    from fada_deploy.common.files import cache_folder
    from fada_deploy.common.runs import RUNS

    yield from _disk_check("runs", RUNS.resolve(), "cd FOLDER  # writable, with free space")
    remedy = "export XDG_CACHE_HOME=FOLDER  # writable, with free space"
    try:
        cache = cache_folder()
    except OSError as error:
        yield Check("cache", "problem", one_line(error, with_type=True), remedy)
        return
    yield from _disk_check("cache", cache, remedy)


def _disk_check(name: str, folder: Path, remedy: str) -> Iterator[Check]:
    try:
        # The folder may not exist yet; then its nearest parent must be writable.
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"fada")
    except OSError as error:
        detail = f"{folder} cannot be written ({error.strerror or error})"
        yield Check(name, "problem", detail, remedy)
        return
    free = shutil.disk_usage(existing).free
    detail = f"{folder}, {free / 1e9:.1f} GB free"
    if free < _LOW_DISK_BYTES:
        yield Check(name, "warning", detail, remedy)
    else:
        yield Check(name, "ok", detail)


def _hardware_decoder_check() -> Iterator[Check]:
    import av

    try:
        from av.codec.hwaccel import hwdevices_available
    except ImportError:  # PyAV before 14
        devices: list[str] = []
    else:
        devices = hwdevices_available()
    codecs = [
        name for name in ("h264_cuvid", "h264_qsv", "h264_v4l2m2m") if name in av.codecs_available
    ]
    names = ", ".join([*devices, *codecs]) or "none"
    yield Check("hardware decoding", "info", f"PyAV supports {names} (not tested here)")
