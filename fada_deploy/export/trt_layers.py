"""Check in which precision TensorRT built each convolution.

A builder may silently build float32 layers from an fp16 or int8 network (int8 on compute capability
7.5 is an example). The list of layers that it logs tells what was built, also without a GPU.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from fada_deploy.common.errors import ToleranceError

# TensorRT-RTX calls a convolution a correlation; TensorRT has several types with "Conv" in it.
_CONVOLUTION = re.compile(r"conv|correlation", re.IGNORECASE)
_LAYER = re.compile(
    r"^\s*Name: .*?, LayerType: (?P<type>\w+), Inputs: (?P<inputs>.*?\]), (?:Constants|Outputs): "
)
_DATATYPE = re.compile(r"Datatype: ([^,\]}]*)")
# The order matters: the spellings of bf16 contain those of fp32 and fp16.
_SPELLINGS = (
    ("bf16", ("bfloat16", "bf16")),
    ("fp16", ("half", "fp16")),
    ("fp32", ("float", "fp32")),
    ("int8", ("int8",)),
    ("fp8", ("fp8",)),
)


def layers_from_log(lines: Iterable[str]) -> Counter[str]:
    """Count the convolutions in a build log by the precision of their input.

    The profiling verbosity of the build must be DETAILED.
    """
    counts: Counter[str] = Counter()
    for message in lines:
        for line in message.splitlines():
            match = _LAYER.match(line)
            if match and _CONVOLUTION.search(match["type"]):
                datatypes = _DATATYPE.findall(match["inputs"])
                counts[_precision(datatypes[0]) if datatypes else "unknown"] += 1
    return counts


def layers_from_network(trt: Any, network: Any) -> Counter[str]:
    """Count the convolutions of a strongly typed network by the precision of their input."""
    counts: Counter[str] = Counter()
    producers: dict[str, Any] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type in (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION):
            source = layer.get_input(0)
            quantized = producers.get(source.name) == trt.LayerType.DEQUANTIZE
            counts["int8" if quantized else _precision(source.dtype.name)] += 1
        for number in range(layer.num_outputs):
            producers[layer.get_output(number).name] = layer.type
    return counts


def _precision(datatype: str) -> str:
    for precision, spellings in _SPELLINGS:
        if any(spelling in datatype.lower() for spelling in spellings):
            return precision
    return datatype.strip().lower() or "unknown"


def check_precision(precision: str, layers: Mapping[str, int], *, float_layers: int = 0) -> None:
    """Raise `ToleranceError` if more than `float_layers` convolutions are not in `precision`."""
    others = sum(layers.values()) - layers.get(precision, 0)
    if layers.get(precision, 0) and others <= float_layers:
        return
    actual = ", ".join(f"{count} in {name}" for name, count in layers.items())
    hint = (
        "; compute capability 7.5 has no int8 convolutions, leave SM75 out"
        if precision == "int8"
        else ""
    )
    raise ToleranceError(
        f"the convolutions must be in {precision} (at most {float_layers} in another precision), "
        f"but TensorRT built {actual or 'none that its log names'}; nothing was written{hint}"
    )
