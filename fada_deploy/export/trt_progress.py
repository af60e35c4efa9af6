"""A build that shows how far it is and can be stopped: minutes of work inside one call of a library."""

from __future__ import annotations

import sys
import threading
from typing import Any

from tqdm import tqdm

from fada_deploy.common.errors import ModelError
from fada_deploy.runtime.backends.trt_library import BuilderContext, said

# Short enough for Ctrl-C to be heard at once, long enough to cost nothing.
_LISTEN_S = 0.1


def build_in_sight(shop: BuilderContext, network: Any, config: Any, where: str) -> bytes:
    """Return the serialized engine; raise `ModelError` saying why there is none.

    The build runs in a thread of its own, so that Ctrl-C reaches this one, which has the builder give up and
    raises `KeyboardInterrupt` once it has.
    """
    cancelled = threading.Event()
    built: list[Any] = []
    with tqdm(total=0, desc="build", unit="step", disable=None, file=sys.stderr) as bar:
        # The library keeps no reference of its own to the monitor.
        monitor = _monitor(shop.trt, bar, cancelled)
        config.progress_monitor = monitor

        def work() -> None:
            builder = shop.builder
            try:
                built.append(builder.build_serialized_network(network, config))
            except Exception as error:
                built.append(error)

        worker = threading.Thread(target=work, name="fada-build", daemon=True)
        worker.start()
        try:
            while worker.is_alive():
                worker.join(_LISTEN_S)
        except BaseException:
            cancelled.set()
            worker.join()
            raise
        finally:
            config.progress_monitor = None
    plan = built[0]
    if plan is None or isinstance(plan, Exception):
        why = said(shop.log.errors) if plan is None else " ".join(str(plan).split())
        raise ModelError(f"{where}: TensorRT builds no engine of it: {why}")
    return bytes(plan)


def _monitor(trt: Any, bar: Any, cancelled: threading.Event) -> Any:
    """Return the library's progress monitor that moves `bar` and stops when `cancelled`."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._left: dict[str, int] = {}
            # Phases lie in one another and may be worked on by several threads.
            self._lock = threading.Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._left[phase_name] = num_steps
                bar.total += num_steps
                bar.set_description(f"build: {phase_name}"[:40])

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                if self._left.get(phase_name, 0) > 0:
                    self._left[phase_name] -= 1
                    bar.update(1)
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                bar.update(self._left.pop(phase_name, 0))

    return Monitor()
