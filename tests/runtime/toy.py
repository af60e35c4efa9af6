"""Small real ONNX models whose labels are known without running them, and videos for them."""

from __future__ import annotations

import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fada_deploy.common.label_space import CITYSCAPES_13, LabelSpace
from fada_deploy.common.metadata import ModelMetadata

STRIDE = 8
SPACE = CITYSCAPES_13
# Seconds to wait for an event that normally takes a tenth of a second, on a busy machine.
TIMEOUT_S = 60.0


def color_model(
    path: Path,
    *,
    head: str = "logits",
    size_hw: tuple[int, int] = (64, 128),
    batch: int | None = None,
    space: LabelSpace = SPACE,
    metadata: str | None = "",
    bias: float = 0.0,
) -> Path:
    """Write a network that assigns each 8×8 block the class with the nearest official color.

    −|x − c|² = 2c·x − |c|² − |x|². The last term is the same for all classes, so a 1×1 convolution
    computes the ranking.
    """
    colors = np.float32([c.color for c in space.classes])
    weight = (2 * colors)[:, :, None, None]
    initial = [
        numpy_helper.from_array(np.float32(weight), "weight"),
        numpy_helper.from_array(np.float32(-(colors**2).sum(1) + bias), "bias"),
    ]
    nodes = [
        helper.make_node("Cast", ["frames"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "AveragePool", ["nchw"], ["pooled"], kernel_shape=[STRIDE] * 2, strides=[STRIDE] * 2
        ),
        helper.make_node("Conv", ["pooled", "weight", "bias"], ["logits"]),
    ]
    height, width = size_hw
    output = helper.make_tensor_value_info(
        "logits", TensorProto.FLOAT, [batch or "batch", len(colors), None, None]
    )
    if head == "labels":
        initial.append(numpy_helper.from_array(np.float32([1, 1, STRIDE, STRIDE]), "scales"))
        nodes += [
            helper.make_node("Resize", ["logits", "", "scales"], ["full"], mode="linear"),
            helper.make_node("ArgMax", ["full"], ["index"], axis=1, keepdims=0),
            helper.make_node("Cast", ["index"], ["labels"], to=TensorProto.UINT8),
        ]
        output = helper.make_tensor_value_info(
            "labels", TensorProto.UINT8, [batch or "batch", height, width]
        )
    source = helper.make_tensor_value_info(
        "frames", TensorProto.UINT8, [batch or "batch", height, width, 3]
    )
    graph = helper.make_graph(nodes, "colors", [source], [output], initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if metadata is not None:
        document = (
            metadata
            or ModelMetadata(space, size_hw, head, align_corners=False, batch=batch).to_json()
        )
        helper.set_model_props(model, {"other": "1", "fada": document})
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def scene(
    index: int, size_hw: tuple[int, int] = (64, 128), space: LabelSpace = SPACE
) -> tuple[np.ndarray, np.ndarray]:
    """Return an RGB frame and its labels: four vertical bands whose classes change with `index`."""
    height, width = size_hw
    bands = (np.arange(width) * 4 // width + index) % space.num_classes
    labels = np.repeat(bands[None].astype(np.uint8), height, axis=0)
    return space.palette[labels], labels


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    pts: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 90_000),
    rate: int = 10,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    audio: bool = False,
) -> Path:
    """Write RGB frames as a video with the given timestamps, optionally with a tone as audio."""
    pts = (
        list(pts)
        if pts is not None
        else [i * int(1 / (rate * time_base)) for i in range(len(frames))]
    )
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = time_base
        if codec == "libx264":
            stream.options = {"crf": "4", "preset": "ultrafast"}
        tone = out.add_stream("aac", rate=16_000) if audio else None
        for frame, frame_pts in zip(frames, pts, strict=True):
            image = av.VideoFrame.from_ndarray(frame, format="rgb24")
            image.pts, image.time_base = frame_pts, time_base
            out.mux(stream.encode(image))
        out.mux(stream.encode())
        if tone is not None:
            seconds = float(pts[-1] * time_base)
            wave = np.sin(np.arange(int(16_000 * seconds), dtype=np.float32) / 10)[None]
            for start in range(0, wave.shape[1] - 1024, 1024):
                block = np.ascontiguousarray(wave[:, start : start + 1024])
                samples = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
                samples.sample_rate, samples.pts, samples.time_base = (
                    16_000,
                    start,
                    Fraction(1, 16_000),
                )
                out.mux(tone.encode(samples))
            out.mux(tone.encode())
    return path


def set_display_matrix(video: Path, matrix: tuple[int, ...]) -> Path:
    """Overwrite the display matrix in the track header of an MP4 file; return its path."""
    data = bytearray(video.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    assert struct.unpack(">9i", data[start : start + 36])[0] == 1 << 16
    data[start : start + 36] = struct.pack(">9i", *matrix)
    video.write_bytes(data)
    return video


def read_video(path: Path) -> list[tuple[Fraction, np.ndarray]]:
    """Return (time in seconds, RGB image) of every frame."""
    with av.open(str(path)) as container:
        return [
            (f.pts * f.time_base, f.to_ndarray(format="rgb24")) for f in container.decode(video=0)
        ]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[Any] | None = None) -> None:
    """Wait until a condition is true; fail after `TIMEOUT_S`.

    If `process` should make it true, fail at once when the process ends, and kill it on a timeout.
    """
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if process is not None and process.poll() is not None:
            output = process.stderr and process.stderr.read()
            raise AssertionError(f"the process ended with {process.returncode}: {output}")
        if time.monotonic() > deadline:
            if process is not None:
                process.kill()
            raise AssertionError(f"the condition was not true after {TIMEOUT_S:g} s")
        time.sleep(0.01)


def write_image(path: Path, frame: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    return path


@contextmanager
def http_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve HTTP from a thread and yield the address of the server; requests are not logged."""

    class Silent(handler):  # type: ignore[misc, valid-type]
        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
