"""Scores against a confusion counted pixel by pixel, and frames that cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.data import open_dataset
from fada_deploy.evaluation import evaluate


def test_evaluation_counts_every_pixel_and_names_the_bad_frame(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truths = [rng.choice(np.array([0, 1, 13, 255], np.uint8), (9, 13)) for _ in range(3)]
    for sub in ("images", "labels"):
        (tmp_path / sub).mkdir()
    for i, truth in enumerate(truths):
        assert cv2.imwrite(str(tmp_path / f"images/{i}.png"), np.full((9, 13, 3), i, np.uint8))
        assert cv2.imwrite(str(tmp_path / f"labels/{i}.png"), truth)
    (tmp_path / "images/1.png").write_bytes(b"not a picture")
    toml = tmp_path / "set.toml"
    toml.write_text('[splits.val]\nimages = "images/*.png"\nlabels = "labels/{stem}.png"\n')
    answers = {i: rng.choice(np.array([0, 1, 5], np.uint8), (9, 13)) for i in (0, 2)}

    def predict(frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [answers[int(f[0, 0, 0])] for f in frames]

    result = evaluate(
        predict, open_dataset(str(toml), None, split="val", space=CITYSCAPES_19), batch=2
    )

    count = {k: [0, 0] for k in (0, 1, 13)}  # class: [intersection, union]
    for i, answer in answers.items():
        for truth, said in zip(truths[i].flat, answer.flat, strict=True):
            for k, pair in count.items():
                if truth != 255:
                    pair[0] += int(truth == k and said == k)
                    pair[1] += int(truth == k or said == k)
    for k, (hit, union) in count.items():
        assert result.scores.iou[k] == pytest.approx(hit / union)
    assert result.scores.miou == pytest.approx(np.mean([h / u for h, u in count.values()]))
    assert "pole" in result.scores.absent and "road" not in result.scores.absent
    assert result.frames == 2 and len(result.failed) == 1 and "1.png" in result.failed[0]
