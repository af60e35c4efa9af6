"""OpenVINO Model API: `SegmentationModel` in its `AsyncPipeline`, drawn with a lookup table.

It reads the ONNX file directly (the package `onnx` reads the properties) and detects the uint8 NHWC
input. It resizes inside the graph, and it enlarges labels to the nearest pixel instead of
interpolating logits, which is faster and coarser.

It is configured for speed and plain labels: no soft predictions, which cost a resize and copies;
`blur_strength` -1, an argmax without a threshold, since logits are not probabilities; and the size
of the frames known in advance. Frames are converted to RGB here, because `reverse_input_channels`
has no effect on DDRNet-23-slim with OpenVINO 2026.4.1. Its `Visualizer` draws one image per class
side by side and has no overlay.
"""

from __future__ import annotations

import cv2
import numpy as np
from model_api.adapters import OpenvinoAdapter, create_core
from model_api.models import SegmentationModel
from model_api.pipelines import AsyncPipeline
from shared import Job, Recorder, open_writer


def open_pipeline(job: Job, size_wh: tuple[int, int]) -> AsyncPipeline:
    """Load the model, run it once and return a pipeline with `job.streams` requests."""
    settings = {"NUM_STREAMS": str(job.streams), "INFERENCE_NUM_THREADS": str(job.threads)}
    if job.precision:
        settings["INFERENCE_PRECISION_HINT"] = job.precision
    adapter = OpenvinoAdapter(create_core(), job.model, device="CPU", plugin_config=settings)
    configuration = {
        "return_soft_prediction": False,
        "blur_strength": -1,
        "input_frame_width": size_wh[0],
        "input_frame_height": size_wh[1],
    }
    model = SegmentationModel(adapter, configuration, preload=True)
    model(np.full((size_wh[1], size_wh[0], 3), 128, np.uint8))
    return AsyncPipeline(model)


def main() -> None:
    job = Job.from_arguments()
    capture = cv2.VideoCapture(job.video)
    rate = capture.get(cv2.CAP_PROP_FPS)
    size = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    pipeline, palette = open_pipeline(job, size), np.ascontiguousarray(job.palette_bgr[:, None])
    recorder, count, submitted, has_frame = Recorder(job), 0, 0, True
    with open_writer(job, rate, size) as write:
        while has_frame or count < submitted:
            if (result := pipeline.get_result(count)) is not None:
                labels, bgr = result[0].astype(np.uint8), result[1]["frame"]
                write(cv2.addWeighted(cv2.applyColorMap(labels, palette), 0.5, bgr, 0.5, 0))
                recorder.add_labels(count, labels)
                count += 1
            elif has_frame and pipeline.is_ready():
                has_frame, bgr = capture.read() if submitted < job.frames else (False, None)
                if has_frame:
                    rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
                    pipeline.submit_data(rgb, submitted, {"frame": bgr})
                    submitted += 1
            elif has_frame:
                pipeline.await_any()
            else:
                pipeline.await_all()
    capture.release()
    compiled = pipeline.model.inference_adapter.compiled_model
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    recorder.finish(
        count,
        ("openvino-model-api", "openvino", "opencv-python-headless", "av"),
        f"openvino, {job.streams} requests, computes in {precision}",
    )


if __name__ == "__main__":
    main()
