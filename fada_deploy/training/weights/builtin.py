"""The built-in model as a network that can be trained further.

Its file is an int8 ONNX model without normalization layers: the export multiplied their scale into
the convolutions. The weights are converted back to float, and every normalization layer gets the
statistics of its input over rendered scenes, with the scale and shift that keep the function.
"""

from __future__ import annotations

from collections import defaultdict
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fada_deploy.common.errors import MissingExtraError, ModelError
from fada_deploy.common.runs import BUILTIN_FILE
from fada_deploy.runtime.backends.onnx_file import read_metadata
from fada_deploy.synth.scene import render
from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel, find_backbone
from fada_deploy.training.weights.input_normalizations import INPUT_NORMALIZATIONS

# Rendered scenes for the statistics, and the seed of the first one, which no training uses.
_SCENES, _FIRST_SEED = 24, 990_000
# What the export adds to the names of parameters.
_PREFIX, _QUANTIZED, _FOLDED_BIAS = "model.", "_quantized", "_bias"


def load_builtin() -> tuple[SegmentationModel, dict[str, Any]]:
    """Return the built-in model as a float network in evaluation mode, and its provenance.

    Its labels are those of the file, except for the rounding of activations to int8 in the file.
    Raise `ModelError` if the file is damaged, `MissingExtraError` without the package onnx.
    """
    model, provenance = _load_once()
    return deepcopy(model), provenance


@cache
def _load_once() -> tuple[SegmentationModel, dict[str, Any]]:
    metadata = read_metadata(BUILTIN_FILE)
    config = metadata.provenance["config"]
    mean, std, _ = INPUT_NORMALIZATIONS[find_backbone(config["backbone"]).init_norm or ""]
    size = metadata.input_size_hw
    spec = ModelSpec(config["backbone"], metadata.label_space, size, config["norm"], mean, std)
    with torch.random.fork_rng(devices=[]):
        model = SegmentationModel(spec).eval()
    frames = [render("random", _FIRST_SEED + i, size)[0] for i in range(_SCENES)]
    try:
        _load_folded(model, _read_tensors(), torch.from_numpy(np.stack(frames)))
    except (KeyError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{BUILTIN_FILE} is damaged ({error}); install the package again"
        ) from None
    return model, dict(metadata.provenance)


def _read_tensors() -> dict[str, Tensor]:
    """Return the float tensors of the file by the names of the network's parameters."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise MissingExtraError("onnx", "export") from None
    arrays = {
        tensor.name.removeprefix(_PREFIX): numpy_helper.to_array(tensor)
        for tensor in onnx.load(BUILTIN_FILE).graph.initializer
    }
    tensors = {}
    for name, array in arrays.items():
        if not name.endswith(_QUANTIZED):
            tensors[name] = torch.from_numpy(np.array(array))
            continue
        plain = name.removesuffix(_QUANTIZED)
        # The export names the parameters of weights and of biases differently.
        base = plain if f"{plain}_scale" in arrays else name
        tensors[plain] = _dequantize(array, arrays[f"{base}_scale"], arrays[f"{base}_zero_point"])
    return tensors


def _dequantize(array: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any]) -> Tensor:
    """Return (array − zero) · scale, with one scale and zero point per output channel."""
    shape = (-1,) + (1,) * (array.ndim - 1)
    values = array.astype(np.float64) - zero.astype(np.float64).reshape(shape)
    return torch.from_numpy((values * scale.reshape(shape)).astype(np.float32))


def _load_folded(model: SegmentationModel, tensors: dict[str, Tensor], frames: Tensor) -> None:
    """Load tensors in which normalization layers are multiplied into convolutions.

    `frames` (N, H, W, 3) uint8 are those over which the normalization statistics are measured.
    """
    folded = {
        bn: tensors[f"{conv}.weight{_FOLDED_BIAS}"]
        for conv, bn in _normalized_convolutions(model, frames[:1]).items()
        if f"{bn}.weight" not in tensors
    }
    state = {name: t for name, t in model.state_dict().items() if "num_batches_tracked" in name}
    for name, current in model.state_dict().items():
        layer, _, parameter = name.rpartition(".")
        if name in state:
            continue
        if layer not in folded:
            state[name] = tensors[name]
        elif parameter in ("running_mean", "running_var"):
            state[name] = torch.full_like(current, float(parameter == "running_var"))
        else:
            norm = model.get_submodule(layer)
            assert isinstance(norm, nn.BatchNorm2d)
            scale = torch.full_like(current, (1 + norm.eps) ** 0.5)
            state[name] = scale if parameter == "weight" else folded[layer]
    model.load_state_dict(state)
    _set_statistics({name: model.get_submodule(name) for name in folded}, model, frames)


@torch.no_grad()
def _normalized_convolutions(model: nn.Module, frames: Tensor) -> dict[str, str]:
    """Return the convolutions whose output is normalized: name → name of the normalization."""
    producers: dict[int, str] = {}
    pairs: dict[str, str] = {}
    kept: list[Tensor] = []  # a freed tensor's id would be used again
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):

            def produced(_: nn.Module, __: Any, output: Tensor, name: str = name) -> None:
                kept.append(output)
                producers[id(output)] = name

            handles.append(module.register_forward_hook(produced))
        elif isinstance(module, nn.BatchNorm2d):

            def consumed(_: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
                if id(inputs[0]) in producers:
                    pairs[producers[id(inputs[0])]] = name

            handles.append(module.register_forward_pre_hook(consumed))
    model(frames)
    for handle in handles:
        handle.remove()
    return pairs


@torch.no_grad()
def _set_statistics(
    norms: dict[str, nn.Module], model: nn.Module, frames: Tensor, batch: int = 4
) -> None:
    """Give normalization layers the statistics of their input, without changing the function."""
    sums: dict[str, list[Tensor]] = defaultdict(list)
    handles = []
    for name, norm in norms.items():

        def measure(_: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
            x = inputs[0].double()
            sums[name].append(torch.stack([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))]))

        handles.append(norm.register_forward_pre_hook(measure))
    for part in frames.split(batch):
        model(part)
    for handle in handles:
        handle.remove()
    for name, norm in norms.items():
        assert isinstance(norm, nn.BatchNorm2d)
        mean, square = torch.stack(sums[name]).mean(0)
        variance = (square - mean.square()).clamp(min=0)
        norm.running_mean, norm.running_var = mean.float(), variance.float()
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.add_(mean)
