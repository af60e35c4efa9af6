"""Build a TensorRT engine with a progress bar, interruptible with Ctrl-C."""

from __future__ import annotations

import threading
from typing import Any

from fada_deploy.common.errors import ModelError, one_line
from fada_deploy.common.progress import Progress, progress_bar
from fada_deploy.runtime.backends.trt_library import BuilderContext, error_summary

# How often (in seconds) the main thread checks for Ctrl-C while the build runs.
_POLL_S = 0.1


def build_serialized(
    builder_context: BuilderContext, network: Any, config: Any, where: str
) -> bytes:
    """Return the serialized engine; raise `ModelError` with the builder's errors if it fails.

    The build runs in a thread of its own, because a call into the library does not notice Ctrl-C.
    On Ctrl-C the build is canceled, and `KeyboardInterrupt` is raised once it has ended.
    """
    canceled = threading.Event()
    results: list[Any] = []
    with progress_bar(None, "building engine", unit="step") as bar:
        # The library holds no reference to the monitor, so this variable has to.
        monitor = _monitor(builder_context.trt, bar, canceled)
        config.progress_monitor = monitor

        def build() -> None:
            builder = builder_context.builder
            try:
                results.append(builder.build_serialized_network(network, config))
            except Exception as error:
                results.append(error)

        thread = threading.Thread(target=build, name="fada-build", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(_POLL_S)
        except BaseException:
            canceled.set()
            thread.join()
            raise
        finally:
            config.progress_monitor = None
    plan = results[0]
    if plan is None or isinstance(plan, Exception):
        reason = error_summary(builder_context.log.errors) if plan is None else one_line(plan)
        raise ModelError(f"{where}: TensorRT could not build an engine ({reason})")
    return bytes(plan)


def _monitor(trt: Any, bar: Progress, canceled: threading.Event) -> Any:
    """Return a progress monitor of the library that updates `bar` and stops once `canceled`."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._remaining: dict[str, int] = {}
            # Phases are nested, and several threads may report at the same time.
            self._lock = threading.Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._remaining[phase_name] = num_steps
                bar.set_postfix({"phase": phase_name[:40]})

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                if self._remaining.get(phase_name, 0) > 0:
                    self._remaining[phase_name] -= 1
                    bar.update(1)
            return not canceled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                bar.update(self._remaining.pop(phase_name, 0))

    return Monitor()
