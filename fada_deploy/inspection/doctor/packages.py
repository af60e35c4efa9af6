"""What is installed, against what the package's own metadata asks for, and what must not lie side by side."""

from __future__ import annotations

import importlib
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from fada_deploy.common.system import installed_version
from fada_deploy.inspection.doctor.check import Check, State, card, is_here, last_line

_SELF = "fada_deploy"
# Distributions that bring one and the same module, so that the one installed last wins, file by file.
_CV2 = (
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python-headless",
    "opencv-contrib-python",
)
_ORT = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-rocm",
)
_CUPY = ("cupy-cuda13x", "cupy-cuda12x", "cupy")
# Whichever of them is there does for the first.
_INSTEAD = {family[0]: family for family in (_CV2, _ORT, _CUPY)}
# What onnxruntime-gpu's own TensorRT provider links: libnvinfer.so.10.
_ORT_TENSORRT = 10


@dataclass(frozen=True)
class Need:
    """A requirement: distribution, the limits on its version, and the extra that it is for ("" for none)."""

    name: str
    extras: tuple[str, ...]
    limits: tuple[tuple[str, str], ...]
    extra: str


def python() -> Iterator[Check]:
    """Check the interpreter against `requires-python`."""
    found = f"{platform.python_version()} ({sys.executable})"
    asked = _metadata_python()
    if asked and _outside(platform.python_version(), _limits(asked)):
        yield Check(
            "python",
            "bad",
            f"{found}; {_SELF} takes {asked}",
            f"a virtual environment of Python {asked}",
        )
    else:
        yield Check("python", "ok", found)


def libraries() -> Iterator[Check]:
    """Check that what every command needs is there, new enough, and loads."""
    if installed_version(_SELF) is None:
        yield Check(_SELF, "note", "runs, but pip does not know it", "pip install -e .")
    needs = [need for need in _needs() if not need.extra]
    found, lacking = _compared(needs)
    remedy = f"pip install {' '.join(lacking)}" if lacking else ""
    yield Check(
        "libraries", "bad" if lacking else "ok", ", ".join(found) or "none are asked for", remedy
    )
    for module, distribution in (
        ("numpy", "numpy"),
        ("cv2", "opencv-python-headless"),
        ("av", "av"),
    ):
        if is_here(module):
            try:
                importlib.import_module(module)
            except Exception as error:
                again = f"pip install --force-reinstall {distribution}"
                yield Check(
                    module, "bad", f"is there but does not load ({last_line(error)})", again
                )


def extras() -> Iterator[Check]:
    """Say which extras are whole; those of which nothing is there share one line."""
    needs = _needs()
    absent = []
    for extra in dict.fromkeys(need.extra for need in needs if need.extra):
        wanted = _closure(extra, needs)
        lacking = [need for need in wanted if _is_lacking(need)]
        missing = [need for need in lacking if _version_for(need.name)[1] is None]
        if wanted and len(missing) == len(wanted):
            absent.append(extra)
            continue
        # Of another extra that it holds only what is wrong is said again.
        own = [need for need in wanted if need.extra == extra or need in lacking]
        held = [
            e
            for need in needs
            if need.extra == extra and need.name == _plain(_SELF)
            for e in need.extras
        ]
        found = ", ".join([f"[{e}]" for e in held] + _compared(own)[0])
        remedy = f"pip install '{_SELF}[{extra}]'" if lacking else ""
        state: State = "ok" if not lacking else "note" if lacking == missing else "bad"
        yield Check(f"extra {extra}", state, found, remedy)
    if absent:
        yield Check(
            "other extras",
            "ok",
            f"not installed: {', '.join(absent)} (pip install '{_SELF}[NAME]')",
        )


def clashes() -> Iterator[Check]:
    """Check that no two distributions overwrite each other's files."""
    some = False
    for family, gpu_wants in ((_ORT, "onnxruntime-gpu"), (_CV2, "")):
        here = [
            (name, version) for name in family if (version := installed_version(name)) is not None
        ]
        if len(here) < 2:
            continue
        some = True
        names = [name for name, _ in here]
        keep = gpu_wants if gpu_wants in names and card() else names[0]
        yield Check(
            "clash",
            "bad",
            f"{' and '.join(f'{n} {v}' for n, v in here)} share one folder, the last installed over the other",
            f"pip uninstall -y {' '.join(names)} && pip install {keep}",
        )
    if not some:
        yield Check("clashes", "ok", "one onnxruntime and one OpenCV at most")
    yield from _tensorrt_of_onnxruntime()


def _tensorrt_of_onnxruntime() -> Iterator[Check]:
    ort, trt = installed_version("onnxruntime-gpu"), installed_version("tensorrt")
    if ort is not None and trt is not None and _numbers(trt)[0] != _ORT_TENSORRT:
        yield Check(
            "tensorrt in onnxruntime",
            "note",
            f"onnxruntime-gpu {ort} links TensorRT {_ORT_TENSORRT}, here is {trt}: its TensorRT provider does not "
            "start. Nothing here uses that; engines run on TensorRT itself",
            "fada export --trt",
        )


def _metadata_python() -> str:
    try:
        return str(metadata.metadata(_SELF)["Requires-Python"] or "")
    except metadata.PackageNotFoundError:
        return ""


def _needs() -> list[Need]:
    try:
        lines = metadata.requires(_SELF) or []
    except metadata.PackageNotFoundError:
        return []
    return [need for line in lines if (need := _need(line)) is not None]


def _need(line: str) -> Need | None:
    """Read one line of `Requires-Dist`; None where its marker is of another machine.

    `packaging` would read any; it is no dependency, and the lines are our own: names, limits, `and`.
    """
    text, _, marker = line.partition(";")
    head = re.match(r"\s*([\w.-]+)\s*(?:\[([^\]]*)\])?\s*\(?([^)]*)\)?", text)
    assert head is not None
    extra = ""
    here = {"sys_platform": sys.platform, "platform_machine": platform.machine()}
    for key, sign, value in re.findall(r"(\w+)\s*(==|!=)\s*[\"']([^\"']*)[\"']", marker):
        if key == "extra":
            extra = value
        elif key in here and (here[key] == value) != (sign == "=="):
            return None
    of = tuple(e.strip() for e in (head[2] or "").split(",") if e.strip())
    return Need(_plain(head[1]), of, _limits(head[3]), extra)


def _closure(extra: str, needs: list[Need]) -> list[Need]:
    """Return what an extra asks for, its references to other extras followed."""
    asked, todo, seen = [], [extra], set()
    while todo:
        name = todo.pop(0)
        seen.add(name)
        for need in needs:
            if need.extra == name and need.name == _plain(_SELF):
                todo += [e for e in need.extras if e not in seen]
            elif need.extra == name:
                asked.append(need)
    return list({need.name: need for need in asked}.values())


def _compared(needs: list[Need]) -> tuple[list[str], list[str]]:
    """Return what was found of each need, and as pip takes it, what is lacking."""
    found, lacking = [], []
    for need in needs:
        name, version = _version_for(need.name)
        limits = ",".join(f"{sign}{limit}" for sign, limit in need.limits)
        if version is None:
            found.append(f"{name} missing")
        else:
            found.append(
                f"{name} {version}" + (f", where {limits} is needed" if _is_lacking(need) else "")
            )
        if _is_lacking(need):
            lacking.append(f"'{need.name}{limits}'")
    return found, lacking


def _version_for(name: str) -> tuple[str, str | None]:
    for candidate in _INSTEAD.get(name, (name,)):
        if (version := installed_version(candidate)) is not None:
            return candidate, version
    return name, None


def _is_lacking(need: Need) -> bool:
    version = _version_for(need.name)[1]
    return version is None or _outside(version, need.limits)


def _outside(version: str, limits: tuple[tuple[str, str], ...]) -> bool:
    have = _numbers(version)
    return any(
        have < _numbers(limit) if sign == ">=" else have >= _numbers(limit)
        for sign, limit in limits
    )


def _limits(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((sign, limit) for sign, limit in re.findall(r"(>=|<)\s*([\w.]+)", text))


def _numbers(version: str) -> tuple[int, ...]:
    """Return a version's release numbers, without the zeros at its end: 2.0 is 2."""
    numbers = [int(part) for part in re.match(r"[\d.]*", version)[0].split(".") if part]  # type: ignore[index]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
