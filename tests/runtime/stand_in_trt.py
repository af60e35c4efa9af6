"""Stand-ins for `tensorrt_rtx` and `cupy` on a machine without a GPU, for `test_tensorrt`.

ONNX Runtime computes the engine's outputs, device memory is NumPy memory, and the kernels are the
real source compiled for the CPU.
"""

from __future__ import annotations

import ctypes
import hashlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnxruntime

from fada_deploy.runtime.backends.engine_file import EngineSidecar, EngineTensor, write_sidecar
from fada_deploy.runtime.backends.onnx_file import read_metadata

VERSION = "1.7.1.116"
SIZE = (64, 128)


class Array:
    """Device memory: an array that NumPy functions do not accept."""

    memory: ClassVar[dict[int, np.ndarray]] = {}

    def __init__(self, values: np.ndarray) -> None:
        self.values = np.ascontiguousarray(values)
        self.memory[self.values.ctypes.data] = self.values

    shape = property(lambda self: self.values.shape)
    dtype = property(lambda self: self.values.dtype)
    size = property(lambda self: self.values.size)
    ndim = property(lambda self: self.values.ndim)
    data = property(lambda self: SimpleNamespace(ptr=self.values.ctypes.data))

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, key: Any) -> Array:
        return Array(self.values[key])

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("CuPy does not allow implicit copies to the host")

    def copy(self) -> Array:
        return Array(self.values.copy())

    def set(self, values: np.ndarray, stream: Any) -> None:
        assert values.flags.c_contiguous and values.shape == self.shape
        self.values[...] = values

    def get(self, *, stream: Any, out: np.ndarray, blocking: bool) -> np.ndarray:
        assert not blocking
        out[...] = self.values
        return out


class Stream:
    ptr = 77

    def __init__(self, non_blocking: bool) -> None:
        assert non_blocking
        self.captured: list[Any] | None = None

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: Any) -> None: ...

    def synchronize(self) -> None:
        assert self.captured is None, "synchronizing ends a capture with an error"

    def record(self) -> Any:
        return SimpleNamespace(synchronize=lambda: None)

    def begin_capture(self) -> None:
        self.captured = []

    def end_capture(self) -> Any:
        assert self.captured is not None
        work, self.captured = self.captured, None
        return Graph(work)


class Graph:
    launches = 0

    def __init__(self, work: list[Any]) -> None:
        self.work = work

    def launch(self, stream: Any) -> None:
        Graph.launches += 1
        for part in self.work:
            part()


def make_cupy(library: ctypes.CDLL, streams: list[Stream]) -> Any:
    def kernel(name: str) -> Any:
        def run(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
            kinds = {
                np.int32: ctypes.c_int,
                np.int64: ctypes.c_longlong,
                np.float32: ctypes.c_float,
            }
            getattr(library, name)(
                *(
                    ctypes.c_void_p(a.data.ptr)
                    if isinstance(a, Array)
                    else kinds[type(a)](a.item())
                    for a in arguments
                )
            )

        return run

    def stream(non_blocking: bool) -> Stream:
        streams.append(Stream(non_blocking))
        return streams[-1]

    class Device:
        def __init__(self, index: int) -> None:
            assert index in (0, 1)

        def __enter__(self) -> None: ...

        def __exit__(self, *error: Any) -> None: ...

    return SimpleNamespace(
        cuda=SimpleNamespace(Device=Device, Stream=stream),
        zeros=lambda shape, dtype: Array(np.zeros(shape, dtype)),
        empty=lambda shape, dtype: Array(np.full(shape, 99, dtype)),
        asarray=lambda a: Array(a.copy()),
        concatenate=lambda parts: Array(np.concatenate([p.values for p in parts])),
        RawModule=lambda code, options: SimpleNamespace(get_function=kernel),
    )


class Machine:
    """A machine with a GPU that records the calls of the backend."""

    def __init__(self, library: ctypes.CDLL, model: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        self.metadata = read_metadata(model)
        self.events: list[str] = []
        self.runs: list[int] = []
        self.streams: list[Stream] = []
        self.bias = 0.0
        self.capturable = True
        self.fails = False
        self.cupy = make_cupy(library, self.streams)
        self.trt = self._trt()
        batch = self.metadata.batch or -1
        head = {"logits": ("float", (13, 8, 16)), "labels": ("uint8", SIZE)}[self.metadata.head]
        self.io = (
            EngineTensor("frames", "in", "uint8", (batch, *SIZE, 3)),
            EngineTensor(self.metadata.head, "out", head[0], (batch, *head[1])),
        )

    def _trt(self) -> Any:
        machine = self

        class ILogger:
            INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        class Context:
            def __init__(self) -> None:
                self.addresses: dict[str, int] = {}

            def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
                self.shape = shape
                return name == "frames" and shape[1:] == (*SIZE, 3)

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                return (self.shape[0], *machine.io[1].shape[1:])

            def set_tensor_address(self, name: str, address: int) -> None:
                self.addresses[name] = address

            def is_stream_capturable(self, stream: int) -> bool:
                return machine.capturable

            def execute_async_v3(self, stream: int) -> bool:
                assert stream == Stream.ptr
                head = machine.metadata.head

                def work() -> None:
                    frames = Array.memory[self.addresses["frames"]]
                    machine.runs.append(len(frames))
                    (output,) = machine.session.run([head], {"frames": frames})
                    Array.memory[self.addresses[head]][...] = output
                    if machine.bias:
                        Array.memory[self.addresses[head]][:, 3] += np.float32(machine.bias)

                if machine.fails:
                    machine.log.log(
                        ILogger.ERROR,
                        "IExecutionContext::enqueueV3: Error Code 1\n (illegal access)",
                    )
                    return False
                captured = machine.streams[-1].captured
                captured.append(work) if captured is not None else work()
                return True

        class Engine:
            num_io_tensors = 2

            def get_tensor_name(self, index: int) -> str:
                return machine.io[index].name

            def _tensor(self, name: str) -> EngineTensor:
                return next(t for t in machine.io if t.name == name)

            def get_tensor_mode(self, name: str) -> str:
                return self._tensor(name).kind

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                return self._tensor(name).shape

            def get_tensor_dtype(self, name: str) -> Any:
                return SimpleNamespace(name=self._tensor(name).dtype.upper())

            def create_runtime_config(self) -> Any:
                return SimpleNamespace()

            def create_execution_context(self, runtime_config: Any) -> Context:
                assert runtime_config.dynamic_shapes_kernel_specialization_strategy == "eager"
                machine.events.append("context")
                return Context()

        class Runtime:
            engine_host_code_allowed = False

            def __init__(self, log: Any) -> None:
                machine.log = log

            def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
                machine.events.append("deserialize")
                assert not self.engine_host_code_allowed
                if plan.startswith(b"bad"):
                    machine.log.log(ILogger.ERROR, "header.magicTag == kEXPECTED_MAGIC_TAG failed")
                    machine.log.log(ILogger.ERROR, "[checkMacros.cpp::catchCudaError] cudaError 35")
                    return None
                return Engine()

        return SimpleNamespace(
            __version__=VERSION,
            ILogger=ILogger,
            Runtime=Runtime,
            TensorIOMode=SimpleNamespace(INPUT="in"),
            DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
        )

    def engine(self, path: Path, plan: bytes = b"plan", **changes: Any) -> Path:
        """Write an engine and its sidecar."""
        path.write_bytes(plan)
        sidecar = EngineSidecar(
            flavor="tensorrt_rtx",
            flavor_version=VERSION,
            engine_sha256=hashlib.sha256(plan).hexdigest(),
            engine_bytes=len(plan),
            onnx_name="model.onnx",
            onnx_sha256="0" * 64,
            metadata=self.metadata,
            io=self.io,
            precision="fp32",
            layers={"fp32": 1},
            compute_capabilities=("SM86",),
            profile=None if self.metadata.batch else (2, 2, 4),
        )
        write_sidecar(path, replace(sidecar, **changes))
        return path
