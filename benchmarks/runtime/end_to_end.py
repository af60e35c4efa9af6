"""Part `end_to_end`: the network alone, and the pipeline from decoding to the encoded overlay."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from clip import LoopedSource
from models import backend_for
from processes import run_job

from fada_deploy.common.system import throughput_parallelism
from fada_deploy.common.tables import format_table
from fada_deploy.runtime.backend_selection import runnable_backends
from fada_deploy.runtime.benchmark import STAGES, benchmark


def job(options: dict[str, Any]) -> dict[str, Any]:
    """Measure one model on one backend, like `fada bench MODEL --video VIDEO`."""
    result = benchmark(
        Path(options["model"]),
        backend=options["backend"],
        parallel=throughput_parallelism(),
        video=LoopedSource(Path(options["clip"]), options["frames"]),
        seconds=options["seconds"],
    )
    return result.to_dict()


def run(models: list[Path], common: dict[str, Any], repeats: int) -> list[dict[str, Any]]:
    """Measure every model on every backend, alternating; return the medians and all results."""
    cases = [
        (model, name)
        for model in models
        for name in (backend_for(model, requested) for requested in common["backends"])
        if name == "auto" or name in runnable_backends(model)
    ]
    results: list[list[dict[str, Any]]] = [[] for _ in cases]
    for _ in range(repeats):
        for (model, backend), case_results in zip(cases, results, strict=True):
            case_results.append(
                run_job("end_to_end", common | {"model": str(model), "backend": backend})
            )
    rows = [_summarize(model, each) for (model, _), each in zip(cases, results, strict=True)]
    _print_table(rows)
    return rows


def _summarize(model: Path, results: list[dict[str, Any]]) -> dict[str, Any]:
    def stage_ms(result: dict[str, Any], name: str) -> float:
        return float(result["end_to_end"]["ms"][name]["p50"])

    return {
        "model": model.name,
        "backend": results[0]["backend"],
        "input": results[0]["input"],
        "ratio": median(each["ratio"] for each in results),
        "model_only_fps": median(each["model_only"]["fps"] for each in results),
        "end_to_end_fps": median(each["end_to_end"]["fps"] for each in results),
        "cpu_ms": median(each["end_to_end"]["cpu_ms"] for each in results),
        "ms": {name: median(stage_ms(each, name) for each in results) for name in STAGES},
        "all": results,
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    header = ["model", "backend", "model-only fps", "end-to-end fps", "ratio", "CPU ms"]
    cells = [
        [
            row["model"],
            row["backend"],
            f"{row['model_only_fps']:.1f}",
            f"{row['end_to_end_fps']:.1f}",
            f"{row['ratio']:.2f}",
            f"{row['cpu_ms']:.1f}",
            *(f"{row['ms'][stage]:.1f}" for stage in STAGES),
        ]
        for row in rows
    ]
    align = "ll" + "r" * (4 + len(STAGES))
    print("\nend-to-end throughput; CPU ms per frame; then the median ms of each stage")
    print(format_table([*header, *STAGES], cells, align=align))
