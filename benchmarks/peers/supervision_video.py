"""supervision with ONNX Runtime: one mask per class, drawn by `MaskAnnotator`.

For MPEG-4, `process_video` reads, annotates and writes in three threads; its `VideoSink` is limited
to the codecs of OpenCV. For H.264, frames are read in a thread by
`get_video_frames_generator(prefetch=…)` and PyAV writes.
"""

from __future__ import annotations

import numpy as np
import supervision as sv
from shared import Job, Recorder, load_onnxruntime, open_writer, predict_labels

_PREFETCH = 32  # the default of process_video


def main() -> None:
    job = Job.from_arguments()
    run = load_onnxruntime(job)
    colors = sv.ColorPalette([sv.Color(*rgb) for rgb in job.palette_rgb])
    annotator = sv.MaskAnnotator(color=colors, opacity=0.5, color_lookup=sv.ColorLookup.CLASS)
    recorder, count = Recorder(job), 0

    def annotate(bgr: np.ndarray, index: int) -> np.ndarray:
        nonlocal count
        labels = predict_labels(job, run, bgr).astype(np.uint8)
        classes = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
        masks = labels == classes[:, None, None].astype(np.uint8)
        detections = sv.Detections(xyxy=sv.mask_to_xyxy(masks), mask=masks, class_id=classes)
        recorder.add_labels(index, labels)
        count += 1
        return annotator.annotate(bgr, detections)

    if job.encoder == "mp4v":
        sv.process_video(job.video, job.output, annotate, max_frames=job.frames)
    else:
        info = sv.VideoInfo.from_video_path(job.video)
        with open_writer(job, info.fps, info.resolution_wh) as write:
            # Its parameter `end` must not exceed the frame count in the header, so count here.
            frames = sv.get_video_frames_generator(job.video, prefetch=_PREFETCH)
            for index, bgr in enumerate(frames):
                if index == job.frames:
                    break
                write(annotate(bgr, index))
            frames.close()
    recorder.finish(count, ("supervision", "onnxruntime", "opencv-python-headless", "av"))


if __name__ == "__main__":
    main()
