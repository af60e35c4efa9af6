"""What the builder made of each layer, and whether that is the precision that was asked for.

A builder takes a request for half precision or int8 and may build float32 without a word (int8 on compute
capability 7.5 is one such case). Its own list of layers, which it logs even where no GPU is, says what was built.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from fada_deploy.common.errors import ToleranceError

# TensorRT-RTX calls a convolution a correlation; TensorRT has several kinds with "Conv" in their names.
_CONVOLUTION = re.compile(r"conv|correlation", re.IGNORECASE)
_LAYER = re.compile(
    r"^\s*Name: .*?, LayerType: (?P<kind>\w+), Inputs: (?P<inputs>.*?\]), (?:Constants|Outputs): "
)
_TYPE = re.compile(r"Datatype: ([^,\]}]*)")
# Ordered: BFloat16 and BF16 hold the names of others.
_NAMES = (
    ("bf16", ("bfloat16", "bf16")),
    ("fp16", ("half", "fp16")),
    ("fp32", ("float", "fp32")),
    ("int8", ("int8",)),
    ("fp8", ("fp8",)),
)


def layers_of_log(lines: Iterable[str]) -> Counter[str]:
    """Count convolutions by the precision of their input, from the verbose log of a detailed build."""
    found: Counter[str] = Counter()
    for message in lines:
        for line in message.splitlines():
            match = _LAYER.match(line)
            if match and _CONVOLUTION.search(match["kind"]):
                types = _TYPE.findall(match["inputs"])
                found[_name_of(types[0]) if types else "unknown"] += 1
    return found


def layers_of_network(trt: Any, network: Any) -> Counter[str]:
    """Count convolutions by the precision that a strongly typed network defines them in."""
    found: Counter[str] = Counter()
    makers: dict[str, Any] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type in (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION):
            source = layer.get_input(0)
            quantized = makers.get(source.name) == trt.LayerType.DEQUANTIZE
            found["int8" if quantized else _name_of(source.dtype.name)] += 1
        for number in range(layer.num_outputs):
            makers[layer.get_output(number).name] = layer.type
    return found


def _name_of(kind: str) -> str:
    for name, spellings in _NAMES:
        if any(s in kind.lower() for s in spellings):
            return name
    return kind.strip().lower() or "unknown"


def check_precision(asked: str, layers: Mapping[str, int], *, left_out: int = 0) -> None:
    """Raise `ToleranceError` when the layers are not in the precision that was asked for, bar `left_out` of them."""
    others = sum(layers.values()) - layers.get(asked, 0)
    if layers.get(asked, 0) and others <= left_out:
        return
    listed = (
        ", ".join(f"{count} in {name}" for name, count in layers.items())
        or "none that could be told"
    )
    hint = (
        "; compute capability 7.5 has no int8 convolutions, so leave SM75 out"
        if asked == "int8"
        else ""
    )
    raise ToleranceError(
        f"{asked} was asked for, but of the convolutions that the builder made there are {listed}; "
        f"nothing was written{hint}"
    )
