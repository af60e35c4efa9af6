"""Compilation of the networks of a run, and CUDA graphs."""

from __future__ import annotations

import logging

import torch
from torch import nn

from fada_deploy.common.errors import UsageError
from fada_deploy.training.models.segmentation import SegmentationModel

logger = logging.getLogger(__name__)


class Compilation:
    """Compiles networks in place, so that the names of their parameters do not change.

    With CUDA graphs the host launches all kernels of a network with a single call. The outputs of a
    network are then valid until the next `start_iteration`.

    Raise `UsageError` if torch.compile does not work for the device.
    """

    def __init__(self, device: torch.device, *, enabled: bool, cuda_graphs: bool) -> None:
        self._enabled, self._cuda_graphs = enabled or cuda_graphs, cuda_graphs
        if self._enabled:
            _check_compiler(device)
        if cuda_graphs and device.type != "cuda":
            logger.warning("there are no CUDA graphs on %s; the networks are only compiled", device)

    def model(self, model: SegmentationModel) -> SegmentationModel:
        """Compile F and G of a network and return it."""
        self.network(model.feature_extractor["backbone"])
        self.network(model.classifier)
        return model

    def network(self, network: nn.Module) -> None:
        """Compile a network."""
        if self._enabled:
            # Source and target batches differ in size; static shapes compile faster kernels for
            # each.
            mode = "reduce-overhead" if self._cuda_graphs else None
            network.compile(dynamic=False, mode=mode)

    def start_iteration(self) -> None:
        """Mark the start of an iteration; all passes of a network in it keep their outputs."""
        if self._cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()


def _check_compiler(device: torch.device) -> None:
    """Raise `UsageError` if torch.compile does not work for a device."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:
        # A missing C++ compiler, Triton or Python header each raises an error of its own type.
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UsageError(
            f"torch.compile does not work for {device} on this machine ({reason}); "
            "run without --compile and --cuda-graphs"
        ) from None
