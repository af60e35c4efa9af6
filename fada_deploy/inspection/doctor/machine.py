"""Films, cores, windows and disks."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fada_deploy.inspection.doctor.check import Check, is_here, last_line

_LITTLE = 2_000_000_000  # bytes
_CGROUP = Path("/sys/fs/cgroup")
_PYAV_AGAIN = "pip install --force-reinstall --only-binary av av"


def codecs() -> Iterator[Check]:
    """Write a film of three pictures as `fada infer` does and read it back."""
    import av
    import numpy as np

    from fada_deploy.common.video import open_video, upright_rgb
    from fada_deploy.runtime.writers.video_writer import VideoWriter

    missing = [name for name in ("h264", "libx264") if name not in av.codecs_available]
    if missing:
        yield Check(
            "video",
            "bad",
            f"PyAV {av.__version__} has no codec {' and '.join(missing)}",
            _PYAV_AGAIN,
        )
        return
    gray = (40, 120, 200)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        with VideoWriter(path, (64, 96), fps=25) as writer:
            for value in gray:
                writer.write(np.full((64, 96, 3), value, np.uint8))
        container, stream = open_video(path)
        with container:
            means = [float(upright_rgb(frame).mean()) for frame in container.decode(stream)]
    if len(means) == len(gray) and all(abs(m - g) < 8 for m, g in zip(means, gray, strict=True)):
        yield Check("video", "ok", f"PyAV {av.__version__} writes H.264 and reads it back")
    else:
        found = f"PyAV {av.__version__} reads pictures of {means} where {list(gray)} were written"
        yield Check("video", "bad", found, _PYAV_AGAIN)
    yield from _hardware_decoders()


def kernels() -> Iterator[Check]:
    """Check that what the runtime compiles does compile."""
    from fada_deploy.runtime.kernels.loader import KernelLoader

    if not is_here("numba"):
        found = "numba is not installed, which compiles upsampling, resize and drawing; NumPy and OpenCV do them"
        yield Check("kernels", "note", found, "pip install 'fada_deploy[fast]'")
    elif KernelLoader().wait():
        yield Check("kernels", "ok", "upsampling, resize and drawing are compiled")
    else:
        reason = "it does not say why"
        try:
            from fada_deploy.runtime.kernels import (  # noqa: F401
                draw_compiled,
                resize_compiled,
                upsample_compiled,
            )
        except Exception as error:
            reason = last_line(error)
        found = f"upsampling, resize and drawing are left to NumPy and OpenCV: numba does not compile them ({reason})"
        yield Check("kernels", "note", found, "pip install --force-reinstall 'fada_deploy[fast]'")


def cores() -> Iterator[Check]:
    """Compare the cores there are with those we may use and with the threads that are asked for."""
    from fada_deploy.common.system import usable_cores

    usable, there = usable_cores(), os.cpu_count() or 1
    yield Check("cores", "ok", f"{usable} of {there} usable" if usable != there else f"{usable}")
    quota = _quota()
    if quota is not None and quota < usable:
        fits = max(1, int(quota))
        which = (
            sorted(os.sched_getaffinity(0))[:fits]
            if hasattr(os, "sched_getaffinity")
            else range(fits)
        )
        yield Check(
            "core quota",
            "note",
            f"the container's quota is {quota:g} cores, but {usable} threads share it and are throttled",
            f"taskset -c {','.join(map(str, which))} fada …",
        )
    asked = os.environ.get("OMP_NUM_THREADS", "")
    first = asked.partition(",")[0].strip()
    if asked and not (first.isdigit() and int(first) > 0):
        found = f"{asked!r} is no number of threads, and libraries differ in what they make of it"
        yield Check("OMP_NUM_THREADS", "note", found, "unset OMP_NUM_THREADS")
    elif asked and int(first) > usable:
        found = f"{asked} threads on {usable} usable core{'s' if usable > 1 else ''} get in each other's way"
        yield Check("OMP_NUM_THREADS", "note", found, f"export OMP_NUM_THREADS={usable}")
    elif asked:
        yield Check("OMP_NUM_THREADS", "ok", asked)


def display() -> Iterator[Check]:
    """Say whether a window could be opened."""
    import cv2

    lines = [
        line.split(":", 1)[1].strip()
        for line in cv2.getBuildInformation().splitlines()
        if "GUI:" in line
    ]
    gui = lines[0] if lines and lines[0] else "unknown"
    named = [f"{n}={os.environ[n]}" for n in ("WAYLAND_DISPLAY", "DISPLAY") if os.environ.get(n)]
    screen = "a screen" if sys.platform in ("darwin", "win32") else ", ".join(named)
    found = f"{screen or 'no screen'}, OpenCV {cv2.__version__} with "
    found += "no windows" if gui == "NONE" else f"windows by {gui}"
    if screen and gui != "NONE":
        yield Check("display", "ok", found)
    elif screen:
        swap = "pip uninstall -y opencv-python-headless && pip install opencv-python  # only for windows"
        yield Check("display", "note", f"{found}; results are files", swap)
    else:
        remedy = "ssh -X HOST  # only for windows" + (
            "" if gui != "NONE" else ", with opencv-python"
        )
        yield Check("display", "note", f"{found}; results are files", remedy)


def disks() -> Iterator[Check]:
    """Check that runs and caches can be written, and how much room there is."""
    from fada_deploy.common.files import cache_folder
    from fada_deploy.common.runs import RUNS

    yield from _disk("runs", RUNS.resolve(), "cd FOLDER  # one that can be written, and has room")
    remedy = "export XDG_CACHE_HOME=FOLDER  # one that can be written, and has room"
    try:
        cache = cache_folder()
    except OSError as error:
        yield Check("cache", "bad", last_line(error), remedy)
        return
    yield from _disk("cache", cache, remedy)


def _disk(name: str, folder: Path, remedy: str) -> Iterator[Check]:
    # What is not there yet is made in the folder above it.
    try:
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"fada")
    except OSError as error:
        yield Check(name, "bad", f"{folder} cannot be written ({error.strerror or error})", remedy)
        return
    free = shutil.disk_usage(there).free
    found = f"{folder}, {free / 1e9:.1f} GB free"
    yield Check(name, "note", found, remedy) if free < _LITTLE else Check(name, "ok", found)


def _hardware_decoders() -> Iterator[Check]:
    import av

    try:
        from av.codec.hwaccel import hwdevices_available
    except ImportError:  # an older PyAV
        kinds: list[str] = []
    else:
        kinds = hwdevices_available()
    names = sorted(
        name for name in av.codecs_available if name in ("h264_cuvid", "h264_qsv", "h264_v4l2m2m")
    )
    found = f"PyAV is built for {', '.join([*kinds, *names]) or 'none'}; whether they start was not tried"
    yield Check("hardware decoding", "note", found)


def _quota() -> float | None:
    """Return how many cores' time the container may use, None where it is not limited."""
    try:
        limit, period = (_CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            folder = _CGROUP / "cpu"
            limit, period = (
                (folder / f"cpu.cfs_{what}_us").read_text() for what in ("quota", "period")
            )
        except OSError:
            return None
    try:
        cores = int(limit) / int(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return None
    return cores if cores > 0 else None
