"""The passes of a training over the whole target, on a Ray cluster.

They only predict, so the workers need no connection to each other. The workers find the frames, and
the folder of the run, under the same paths as the training.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from fada_deploy.cluster.connection import ClusterOptions
from fada_deploy.cluster.mapping import map_on_cluster
from fada_deploy.common.errors import DataError
from fada_deploy.common.progress import progress_bar
from fada_deploy.data.base import FrameDataset
from fada_deploy.training.data.run_data import whole_target_batches, whole_target_loader
from fada_deploy.training.data.samples import pseudo_label_path
from fada_deploy.training.device import choose_device
from fada_deploy.training.methods.cbst import count_confidences
from fada_deploy.training.models.segmentation import SegmentationModel
from fada_deploy.training.predict import Predictor
from fada_deploy.training.stage_config import SizeHW
from fada_deploy.training.stages.distill import write_pseudo_label


def write_pseudo_labels_on_cluster(
    model: SegmentationModel,
    frames: FrameDataset,
    folder: Path,
    cluster: ClusterOptions,
    *,
    threshold: float,
) -> None:
    """Write the predicted class indices of every frame, as `write_pseudo_labels` does."""
    missing = [i for i in range(len(frames)) if not pseudo_label_path(folder, i).is_file()]
    if not missing:
        return
    # Each worker reads a frame once, so a cache would only take memory.
    make = partial(
        _label_writer,
        _on_cpu(model),
        replace(frames, cache=None),
        folder.absolute(),
        missing,
        _device(cluster),
        threshold,
    )
    labels = map_on_cluster(
        make, len(missing), cluster, name=lambda i: str(frames.pairs[missing[i]].image)
    )
    with closing(labels), progress_bar(len(missing), "pseudo-labels", unit="frame") as bar:
        for i, result in enumerate(labels):
            # Unreadable frames get no file; the data loader skips and reports them later.
            if not (
                isinstance(result, DataError) or pseudo_label_path(folder, missing[i]).is_file()
            ):
                raise DataError(
                    f"{folder}: a worker wrote a pseudo-label that is not there; the folder of the "
                    "run must be on a file system that all machines share"
                )
            bar.update()


def _on_cpu(model: SegmentationModel) -> SegmentationModel:
    """Return a copy that a worker without the GPU of the training can load."""
    return copy.deepcopy(model).cpu()


def _device(cluster: ClusterOptions) -> str:
    """Return the device of the workers, which need not be that of the training."""
    return "cuda" if cluster.gpus else "cpu"


def _label_writer(
    model: SegmentationModel,
    frames: FrameDataset,
    folder: Path,
    missing: list[int],
    device_name: str,
    threshold: float,
) -> Callable[[int], None]:
    device = choose_device(device_name)
    predictor, network = Predictor(model.to(device), device), threading.Lock()

    def write(i: int) -> None:
        with network:
            write_pseudo_label(predictor, frames, folder, missing[i], threshold=threshold)

    return write


def count_target_on_cluster(
    model: SegmentationModel,
    frames: FrameDataset,
    size_hw: SizeHW,
    cluster: ClusterOptions,
    *,
    amp: bool,
) -> Tensor:
    """Return the sum of `count_confidences` over the target, with the batches of one process."""
    batches = whole_target_batches(frames)
    uncached = replace(frames, cache=None)
    make = partial(_confidence_counter, _on_cpu(model), uncached, size_hw, amp, _device(cluster))
    total: Tensor | None = None
    counts = map_on_cluster(make, batches, cluster, name=lambda i: f"batch {i} of the target")
    with closing(counts), progress_bar(batches, "thresholds", unit="batch") as bar:
        for part in counts:
            if isinstance(part, DataError):
                raise part
            total = part if total is None else total + part
            bar.update()
    assert total is not None, "there is at least one batch"
    return total.to(next(model.parameters()).device)


def _confidence_counter(
    model: SegmentationModel, frames: FrameDataset, size_hw: SizeHW, amp: bool, device_name: str
) -> Callable[[int], Tensor]:
    device = choose_device(device_name)
    model = model.to(device).eval()
    loader = whole_target_loader(frames, size_hw, device, ahead=1)
    network = threading.Lock()

    def count(i: int) -> Tensor:
        with network:
            return count_confidences(model, loader[i], amp=amp).cpu()

    return count
