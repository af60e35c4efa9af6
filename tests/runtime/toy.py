"""Tiny real ONNX models whose labels are known without running them, and videos to feed them."""

from __future__ import annotations

import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
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
# Seconds that a busy machine may take for what takes a tenth of one.
PATIENCE = 60.0


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
    """Write a network that gives each 8×8 block the class whose official color is nearest.

    −|x − c|² = 2c·x − |c|² − |x|², and the last term is common to all: a 1×1 convolution.
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
    """Return (frame RGB, its labels): four vertical bands in official colors that change with `index`."""
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
    """Write RGB frames as a video with the given timestamps, and perhaps a tone beside it."""
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
        for frame, when in zip(frames, pts, strict=True):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = when, time_base
            out.mux(stream.encode(picture))
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


def turned(film: Path, matrix: tuple[int, ...]) -> Path:
    """Overwrite the display matrix in the track header of an MP4."""
    data = bytearray(film.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    assert struct.unpack(">9i", data[start : start + 36])[0] == 1 << 16
    data[start : start + 36] = struct.pack(">9i", *matrix)
    film.write_bytes(data)
    return film


def read_video(path: Path) -> list[tuple[Fraction, np.ndarray]]:
    """Return (time in seconds, RGB) of every frame."""
    with av.open(str(path)) as container:
        return [
            (f.pts * f.time_base, f.to_ndarray(format="rgb24")) for f in container.decode(video=0)
        ]


def until(there: Callable[[], bool], process: subprocess.Popen[Any] | None = None) -> None:
    """Wait for something, far longer than it takes on a busy machine; fail when it does not come.

    A `process` that is to bring it fails at once when it ends before, and does not outlive the wait in vain.
    """
    deadline = time.monotonic() + PATIENCE
    while not there():
        if process is not None and process.poll() is not None:
            raise AssertionError(
                f"it ended with {process.returncode}: {process.stderr and process.stderr.read()}"
            )
        if time.monotonic() > deadline:
            if process is not None:
                process.kill()
            raise AssertionError("it did not come")
        time.sleep(0.01)


def write_image(path: Path, frame: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    return path
