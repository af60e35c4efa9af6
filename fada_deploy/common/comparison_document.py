"""The content of `comparison.json`."""

from __future__ import annotations

import msgspec


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one method and seed.

    Attributes:
        seed: The seed.
        run: The folder of the run, relative to the comparison.
        miou: mIoU on the target's labeled validation frames, 0 to 1; null if it has none.
        iou: IoU of each class, null for classes without labeled pixels.
        unlabeled_score: The label-free score of the last stage, 0 to 1; null if unknown.
        seconds: Duration of the method's own stage in seconds.
        memory_mib: Largest memory of the process in MiB.
    """

    seed: int
    run: str
    miou: float | None
    iou: dict[str, float | None]
    unlabeled_score: float | None
    seconds: float
    memory_mib: float


class MethodResult(msgspec.Struct, frozen=True, kw_only=True):
    """The results of one method.

    Attributes:
        method: Its name.
        runs: One result for each finished seed.
        miou_mean: Mean of the mIoU over the seeds; null if there is none.
        miou_std: Standard deviation of the mIoU over the seeds; null for fewer than two.
        iou_mean: Mean IoU of each class over the seeds.
        errors: One line for each seed that could not be trained.
    """

    method: str
    runs: tuple[RunResult, ...]
    miou_mean: float | None
    miou_std: float | None
    iou_mean: dict[str, float | None]
    errors: tuple[str, ...]


class ComparisonDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `comparison.json`.

    Attributes:
        version: Version of this format.
        source: Name of the source.
        target: Name of the target.
        backbone: Name of the network.
        size: Input size, "WIDTHxHEIGHT".
        source_iterations: Iterations of the common source stage.
        method_iterations: Iterations of each method after it.
        seeds: The seeds.
        methods: The methods in the order in which they were named.
    """

    version: int = 1
    source: str
    target: str
    backbone: str
    size: str
    source_iterations: int
    method_iterations: int
    seeds: tuple[int, ...]
    methods: tuple[MethodResult, ...]
