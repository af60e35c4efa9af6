"""Criteria without labels beside the true mIoU: `python benchmarks/selection.py RUN…`.

All weights of the runs (stages and checkpoints) are one pool of candidates: runs must share the
target and the label space. The criteria read unlabeled training frames of the target. The true mIoU
is that of `scores.json`, or is measured on the validation split. Prints a table of the candidates,
and for each criterion the rank correlation with the mIoU and how many points the choice loses to
the best candidate: in the whole pool, within each run, and over all pairs. Ends with a JSON line.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fada_deploy.common.label_space import load_label_space
from fada_deploy.common.runs import SCORES, WEIGHTS, all_weights, final_weights
from fada_deploy.common.tables import format_table
from fada_deploy.training.config import RunConfig
from fada_deploy.training.data.datasets import open_target
from fada_deploy.training.device import choose_device
from fada_deploy.training.run_files import load_config
from fada_deploy.training.scoring import compute_scores
from fada_deploy.training.selection import MAX_FRAMES, source_frame_fractions
from fada_deploy.training.unlabeled_scores import (
    CHANGES,
    Predictions,
    TargetFrames,
    UnlabeledScores,
    consensus_labels,
    missing_classes,
    predict,
)
from fada_deploy.training.weights.checkpoints import load_model

# Name → the criterion as a value of which higher is better.
CRITERIA: dict[str, Callable[[UnlabeledScores], float]] = {
    "score": lambda s: s.score,
    "consistency": lambda s: s.mean_consistency,
    **{name: partial(lambda name, s: s.consistency[name], name) for name in CHANGES},
    "expected IoU": lambda s: s.expected_iou,
    "ensemble": lambda s: s.ensemble_agreement,
    "density": lambda s: s.neighborhood_density,
    "mirror": lambda s: s.mirror_agreement,
    "entropy": lambda s: -s.entropy,
}


class Pool:
    """Candidates of several runs with their predictions and true scores."""

    def __init__(self, runs: Sequence[Path], device: torch.device, seed: int) -> None:
        config = load_config(runs[0])
        space = load_label_space(config.label_space)
        train_set, val = open_target(config, runs[0] / "target_frames", space, print)
        if val is None:
            raise SystemExit(f"{config.tgt}: has no labeled split `val` to compare with")
        self.frames = TargetFrames(train_set, MAX_FRAMES)
        fractions = [source_frame_fractions(run, space.num_classes) for run in runs]
        self.source_fractions = next((f for f in fractions if f.any()), fractions[0])
        self.classes = np.asarray(self.source_fractions > 0)
        self.names: list[str] = []
        self.groups: list[list[int]] = []
        self.miou = np.zeros(0)
        self.predictions: list[Predictions] = []
        self.probabilities: list[torch.Tensor] = []
        grid = None
        for run in runs:
            start = load_config(run).start
            before = [] if start is None else [final_weights(Path(start))]
            group = []
            for path in [*before, *all_weights(run)]:
                name = str(path)
                if name not in self.names:
                    model, _ = load_model(path, device)
                    prediction, probabilities = predict(model, self.frames, grid=grid, seed=seed)
                    grid = (int(probabilities.shape[2]), int(probabilities.shape[3]))
                    self.predictions.append(prediction)
                    self.probabilities.append(probabilities)
                    self.names.append(name)
                    self.miou = np.append(self.miou, true_miou(path, config, val, device))
                group.append(self.names.index(name))
            self.groups.append(group)

    def scores(self, members: Sequence[int]) -> list[UnlabeledScores]:
        """Return the criteria of some candidates, of which the ensemble consists."""
        total = torch.stack([self.probabilities[i] for i in members]).sum(0)
        consensus = consensus_labels(total, self.frames)
        return [self.predictions[i].scores(consensus, self.classes) for i in members]

    def gap(self, criterion: str, members: Sequence[int]) -> float:
        """Return how many points of mIoU the choice among some candidates loses to the best."""
        values = [CRITERIA[criterion](s) for s in self.scores(members)]
        miou = self.miou[list(members)]
        return float(miou.max() - miou[int(np.argmax(values))])


def true_miou(path: Path, config: RunConfig, val: Any, device: torch.device) -> float:
    """Return the mIoU of weights in percent, from `scores.json` or measured."""
    scores = path.parent / SCORES
    if path.name == WEIGHTS and scores.is_file():
        return 100 * float(json.loads(scores.read_text("utf-8"))["miou"])
    return 100 * float(compute_scores(path, config, val, device)["miou"])


def rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return Spearman's rank correlation; equal values have their mean rank."""

    def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([(values < v).sum() + (values == v).sum() / 2 for v in values])

    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def candidate_rows(pool: Pool) -> list[list[str]]:
    """Return a row for each candidate, the highest mIoU first."""
    everyone = range(len(pool.names))
    rows = []
    for i, score in enumerate(pool.scores(everyone)):
        missing = int(missing_classes(pool.source_fractions, score.frame_fractions).sum())
        values = [f"{value(score):.3f}" for value in CRITERIA.values()]
        name = "/".join(Path(pool.names[i]).with_suffix("").parts[-4:]).removesuffix("/weights")
        rows.append([name, f"{pool.miou[i]:.1f}", *values, str(missing)])
    return [rows[i] for i in np.argsort(-pool.miou)]


def summary(pool: Pool) -> dict[str, dict[str, float]]:
    """Return the rank correlation and the gaps of each criterion."""
    everyone = range(len(pool.names))
    scores = pool.scores(everyone)
    result = {}
    for name, value in CRITERIA.items():
        pairs = np.array([pool.gap(name, pair) for pair in combinations(everyone, 2)])
        values = np.array([value(s) for s in scores])
        groups = [pool.gap(name, group) for group in pool.groups]
        result[name] = {
            "rank_correlation": rank_correlation(values, pool.miou),
            "pool_gap": pool.gap(name, everyone),
            "largest_run_gap": max(groups),
            "pairs_within_1.5": float((pairs <= 1.5).mean()),
            "mean_pair_gap": float(pairs.mean()),
            "largest_pair_gap": float(pairs.max()),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [%(default)s]")
    parser.add_argument("--seed", type=int, default=1, help="of pixels and colors [%(default)s]")
    args = parser.parse_args()
    pool = Pool(args.runs, choose_device(args.device), args.seed)
    print(format_table(("candidate", "mIoU %", *CRITERIA, "missing"), candidate_rows(pool)))
    results = summary(pool)
    header = ("criterion", *next(iter(results.values())))
    rows = [[name, *(f"{v:.2f}" for v in values.values())] for name, values in results.items()]
    print(f"\n{format_table(header, rows)}")
    print(json.dumps({"benchmark": "selection", "miou": pool.miou.tolist(), "criteria": results}))


if __name__ == "__main__":
    main()
