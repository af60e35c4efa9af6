"""OpenVINO Model API: `SegmentationModel` in its `AsyncPipeline`, drawn with a look-up table and a weighted sum.

It takes the ONNX file as it is (with the package `onnx`, which reads the properties) and finds out by itself that
it wants uint8 in NHWC. It resizes inside the graph, and enlarges labels to the nearest, not logits, which costs
less and is coarser. Set for speed and plain labels: no soft predictions (a resize and copies), `blur_strength` -1
(an arg max without a threshold, since logits are no shares), the frame's size known beforehand. Frames turn to RGB
here: `reverse_input_channels` does nothing to DDRNet-23-slim with OpenVINO 2026.4.1, though it works with
EfficientNet-Lite0. Its `Visualizer` draws one picture a class, side by side, and no overlay.
"""

from __future__ import annotations

import cv2
import numpy as np
from model_api.adapters import OpenvinoAdapter, create_core
from model_api.models import SegmentationModel
from model_api.pipelines import AsyncPipeline
from shared import Clock, Job, film


def open_pipeline(job: Job, size_wh: tuple[int, int]) -> AsyncPipeline:
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
    job = Job.given()
    capture = cv2.VideoCapture(job.clip)
    rate = capture.get(cv2.CAP_PROP_FPS)
    size = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    pipeline, palette = open_pipeline(job, size), np.ascontiguousarray(job.palette_bgr[:, None])
    clock, done, asked, more = Clock(job), 0, 0, True
    with film(job, rate, size) as add:
        while more or done < asked:
            if (answer := pipeline.get_result(done)) is not None:
                labels, meta = answer[0].astype(np.uint8), answer[1]
                add(cv2.addWeighted(cv2.applyColorMap(labels, palette), 0.5, meta["frame"], 0.5, 0))
                clock.keep(done, labels)
                done += 1
            elif more and pipeline.is_ready():
                more, bgr = capture.read() if asked < job.frames else (False, None)
                if more:
                    pipeline.submit_data(
                        cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), asked, {"frame": bgr}
                    )
                    asked += 1
            elif more:
                pipeline.await_any()
            else:
                pipeline.await_all()
    capture.release()
    precision = pipeline.model.inference_adapter.compiled_model.get_property(
        "INFERENCE_PRECISION_HINT"
    )
    clock.answer(
        done,
        ("openvino-model-api", "openvino", "opencv-python-headless", "av"),
        f"openvino, {job.streams} requests, computes in {precision.get_type_name()}",
    )


if __name__ == "__main__":
    main()
