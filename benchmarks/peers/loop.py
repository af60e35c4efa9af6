"""The loop that everyone writes: OpenCV in, ONNX Runtime, resized logits, arg max, palette[labels], a film out."""

from __future__ import annotations

import cv2
from shared import Clock, Job, film, labels_of, onnxruntime_session


def main() -> None:
    job = Job.given()
    run, palette = onnxruntime_session(job), job.palette_bgr
    clock, done = Clock(job), 0
    capture = cv2.VideoCapture(job.clip)
    rate = capture.get(cv2.CAP_PROP_FPS)
    size = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    with film(job, rate, size) as add:
        while done < job.frames:
            there, bgr = capture.read()
            if not there:
                break
            labels = labels_of(job, run, bgr)
            add(cv2.addWeighted(palette[labels], 0.5, bgr, 0.5, 0))
            clock.keep(done, labels)
            done += 1
    capture.release()
    clock.answer(done, ("onnxruntime", "opencv-python-headless", "av"))


if __name__ == "__main__":
    main()
