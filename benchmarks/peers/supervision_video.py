"""supervision with ONNX Runtime: a mask a class, `MaskAnnotator`, its threaded reader and, for mp4v, its writer.

`process_video` reads, labels and writes in three threads; its `VideoSink` writes what OpenCV can (mp4v). For H.264
the frames come from `get_video_frames_generator(prefetch=…)`, read in a thread, and PyAV writes.
"""

from __future__ import annotations

import numpy as np
import supervision as sv
from shared import Clock, Job, film, labels_of, onnxruntime_session

_PREFETCH = 32  # process_video's own


def main() -> None:
    job = Job.given()
    run = onnxruntime_session(job)
    colors = sv.ColorPalette([sv.Color(*rgb) for rgb in job.palette_rgb])
    annotator = sv.MaskAnnotator(color=colors, opacity=0.5, color_lookup=sv.ColorLookup.CLASS)
    clock, done = Clock(job), 0

    def draw(bgr: np.ndarray, index: int) -> np.ndarray:
        nonlocal done
        labels = labels_of(job, run, bgr).astype(np.uint8)
        classes = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
        masks = labels == classes[:, None, None].astype(np.uint8)
        detections = sv.Detections(xyxy=sv.mask_to_xyxy(masks), mask=masks, class_id=classes)
        clock.keep(index, labels)
        done += 1
        return annotator.annotate(bgr, detections)

    if job.encoder == "mp4v":
        sv.process_video(job.clip, job.film, draw, max_frames=job.frames)
    else:
        info = sv.VideoInfo.from_video_path(job.clip)
        with film(job, info.fps, info.resolution_wh) as add:
            # Its `end` is refused beyond what the header promises.
            pictures = sv.get_video_frames_generator(job.clip, prefetch=_PREFETCH)
            for index, bgr in enumerate(pictures):
                if index == job.frames:
                    break
                add(draw(bgr, index))
            pictures.close()
    clock.answer(done, ("supervision", "onnxruntime", "opencv-python-headless", "av"))


if __name__ == "__main__":
    main()
