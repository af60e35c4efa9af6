"""The performance targets, and the plot of the part `peers`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Target(NamedTuple):
    """A performance target, the measured value and whether it is met."""

    description: str
    value: float
    is_met: bool


def check_targets(document: dict[str, Any]) -> list[Target]:
    """Return the targets of all parts that were measured."""
    targets = []
    for row in document.get("end_to_end", []):
        name = f"{row['model']}, {row['backend']}: end-to-end ≥ 0.85 × model-only"
        targets.append(Target(name, row["ratio"], row["ratio"] >= 0.85))
    for table in document.get("peers", []):
        targets += _peer_targets(table)
    if "memory" in document:
        growth = 100 * document["memory"]["growth"]
        name = f"memory growth after frame {document['memory']['from_frame']} < 2 %"
        targets.append(Target(name, growth, growth < 2))
    for row in document.get("failures", []):
        is_met = row["seconds"] <= 2 and row["cause"] == row["stage"] and not row["files_left"]
        name = f"failure in {row['stage']}: ends within 2 s with its error and leaves no files"
        targets.append(Target(name, row["seconds"], is_met))
    if "startup" in document:
        seconds = document["startup"]["after_a_run"]["first frame written"]
        targets.append(Target("first frame within 1.5 s", seconds, seconds <= 1.5))
    return targets


def _peer_targets(table: dict[str, Any]) -> Iterator[Target]:
    model, rows = table["model"], table["rows"]
    # The same file at the same precision and, except for MPEG-4, with the same encoder.
    comparable = [
        row for row in rows if ", fp32" in row["name"] and not row["name"].startswith("ours")
    ]
    if not comparable:
        return
    loop = min(row["ours_is"] for row in comparable if row["name"].startswith("plain loop"))
    fastest_peer = min(row["ours_is"] for row in comparable)
    yield Target(f"{model}: ≥ 2.5 × the faster plain loop", loop, loop >= 2.5)
    yield Target(f"{model}: ≥ 1.5 × the fastest fp32 peer", fastest_peer, fastest_peer >= 1.5)
    # A faster file of the same network, verified against it.
    fastest = min(
        (row for row in rows if row["name"].startswith("ours")), key=lambda row: row["ours_is"]
    )
    if fastest["ours_is"] < 1:
        speedup = loop / fastest["ours_is"]
        name = f"{model}, {fastest['name']}: ≥ 2.5 × the fp32 plain loop"
        yield Target(name, speedup, speedup >= 2.5)


def plot_peers(document: dict[str, Any], path: Path) -> None:
    """Plot the frames per second of each row, one panel per network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = document["peers"]
    heights = [len(panel["rows"]) for panel in panels]
    figure, axes = plt.subplots(
        len(panels),
        1,
        figsize=(9, 1.0 * len(panels) + 0.36 * sum(heights)),
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
        layout="constrained",
    )
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        _plot_panel(axis, panel)
    axes[-1, 0].set_xlabel(
        f"frames per second, {document['video']} to overlay video, {document['cores']} cores\n"
        "median and range; pale: other precisions",
        fontsize=9,
    )
    figure.savefig(path, dpi=140)
    plt.close(figure)


def _plot_panel(axis: Any, panel: dict[str, Any]) -> None:
    rows = panel["rows"]
    fps = [row["fps"] for row in rows]
    below = [row["fps"] - min(row["fps_all"]) for row in rows]
    above = [max(row["fps_all"]) - row["fps"] for row in rows]
    axis.barh(
        range(len(rows)),
        fps,
        color=[_bar_color(row["name"]) for row in rows],
        xerr=(below, above),
        error_kw={"elinewidth": 1, "capsize": 2},
    )
    for y, (value, up) in enumerate(zip(fps, above, strict=True)):
        axis.text(value + up + 0.012 * max(fps), y, f"{value:.1f}", va="center", fontsize=9)
    axis.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.1 * max(v + up for v, up in zip(fps, above, strict=True)))
    axis.set_title(f"{panel['model']}, {panel['input']}", fontsize=10, loc="left")
    axis.spines[["top", "right"]].set_visible(False)


def _bar_color(name: str) -> str:
    """Return blue for ours and gray for peers, pale for precisions other than fp32."""
    if name.startswith("ours"):
        return "#1b6ca8" if name.startswith("ours, fp32") else "#8fbbdc"
    return "#7d7d7d" if "fp32" in name else "#c9c9c9"
