"""A plain loop: OpenCV reads, ONNX Runtime predicts, argmax of resized logits, palette[labels]."""

from __future__ import annotations

import cv2
from shared import Job, Recorder, load_onnxruntime, open_writer, predict_labels


def main() -> None:
    job = Job.from_arguments()
    run, palette = load_onnxruntime(job), job.palette_bgr
    recorder, count = Recorder(job), 0
    capture = cv2.VideoCapture(job.video)
    rate = capture.get(cv2.CAP_PROP_FPS)
    size = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    with open_writer(job, rate, size) as write:
        while count < job.frames:
            success, bgr = capture.read()
            if not success:
                break
            labels = predict_labels(job, run, bgr)
            write(cv2.addWeighted(palette[labels], 0.5, bgr, 0.5, 0))
            recorder.add_labels(count, labels)
            count += 1
    capture.release()
    recorder.finish(count, ("onnxruntime", "opencv-python-headless", "av"))


if __name__ == "__main__":
    main()
