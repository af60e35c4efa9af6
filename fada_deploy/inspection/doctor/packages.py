"""Compare the installed packages with the requirements of this package."""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from fada_deploy.common.errors import one_line
from fada_deploy.common.system import installed_version
from fada_deploy.inspection.doctor.check import Check, gpu_or_none, is_installed

_SELF = "fada_deploy"
# Distributions that contain the same module: the one installed last overwrites the others' files.
_OPENCV = (
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python-headless",
    "opencv-contrib-python",
)
_ONNXRUNTIME = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-rocm",
)
_CUPY = ("cupy-cuda13x", "cupy-cuda12x", "cupy")
# A requirement on the first distribution is met by any of the others.
_ALTERNATIVES = {family[0]: family for family in (_OPENCV, _ONNXRUNTIME, _CUPY)}
# Modules that every command imports → their distributions.
_MODULES = {"numpy": "numpy", "cv2": "opencv-python-headless", "av": "av"}
# For contributors only; users are not told that it is not installed.
_CONTRIBUTOR_EXTRAS = frozenset({"dev"})
# Major version of the TensorRT that onnxruntime-gpu links (libnvinfer.so.10).
_ONNXRUNTIME_TENSORRT = 10


def python_check() -> Iterator[Check]:
    """Check the version of the interpreter."""
    version = platform.python_version()
    detail = f"{version} ({sys.executable})"
    required = _requires_python()
    if _is_allowed(version.rstrip("+"), SpecifierSet(required)):
        yield Check("python", "ok", detail)
    else:
        remedy = f"python3 -m venv FOLDER  # with a Python {required}"
        yield Check("python", "problem", f"{detail}; {_SELF} needs {required}", remedy)


def library_checks() -> Iterator[Check]:
    """Check that the packages of the base installation are installed, new enough, and load."""
    if installed_version(_SELF) is None:
        detail = "is imported from a folder that pip did not install"
        yield Check(_SELF, "warning", detail, "pip install -e .")
    requirements = _requirements()
    unmet = [requirement for requirement in requirements if not _is_met(requirement)]
    yield Check(
        "libraries",
        "problem" if unmet else "ok",
        ", ".join(map(_describe, requirements)) or "the requirements are unknown",
        _pip_install(unmet) if unmet else "",
    )
    for module, distribution in _MODULES.items():
        if not is_installed(module):
            continue
        try:
            importlib.import_module(module)
        except Exception as error:
            yield Check(
                module,
                "problem",
                f"is installed but cannot be imported ({one_line(error, with_type=True)})",
                f"pip install --force-reinstall {distribution}",
            )


def extra_checks() -> Iterator[Check]:
    """List the extras that are installed, and those that are not in one neutral line.

    An extra is a problem only if one of its installed packages has a version that is not allowed.
    """
    extras = {name: _extra_requirements(name) for name in _extra_names()}
    complete = {name for name, needs in extras.items() if needs and all(map(_is_met, needs))}
    in_complete = {r.name for name in complete for r in extras[name]}
    incomplete = []
    for name, requirements in extras.items():
        missing = [r for r in requirements if _find(r.name)[1] is None]
        unmet = [r for r in requirements if not _is_met(r)]
        outdated = [r for r in unmet if r not in missing]
        # The packages of included extras are listed there, unless they are not met.
        own = [r for r in _requirements(name) if not _is_self(r)]
        included = [f"[{e}]" for r in _requirements(name) if _is_self(r) for e in sorted(r.extras)]
        shown = own + [r for r in unmet if r not in own]
        detail = ", ".join([*included, *map(_describe, shown)])
        if name in complete:
            yield Check(f"extra {name}", "ok", detail)
        elif outdated:
            yield Check(f"extra {name}", "problem", detail, _pip_install(outdated))
        elif missing and name not in _CONTRIBUTOR_EXTRAS:
            # Packages that other extras need as well do not tell that this extra was wanted.
            is_partial = any(r not in missing and r.name not in in_complete for r in requirements)
            names = ", ".join(r.name for r in missing)
            incomplete.append(f"{name} ({names} missing)" if is_partial else name)
    if incomplete:
        detail = f"not installed: {', '.join(incomplete)}; install only what you need"
        yield Check("other extras", "info", detail)


def clash_checks() -> Iterator[Check]:
    """Check that no two distributions overwrite each other's files."""
    has_clash = False
    for family, for_gpu in ((_ONNXRUNTIME, "onnxruntime-gpu"), (_OPENCV, "")):
        versions = {name: version for name in family if (version := installed_version(name))}
        if len(versions) < 2:
            continue
        has_clash = True
        keep = for_gpu if for_gpu in versions and gpu_or_none() else next(iter(versions))
        installed = " and ".join(f"{name} {version}" for name, version in versions.items())
        yield Check(
            "clash",
            "problem",
            f"{installed} contain the same files, so the one installed last overwrote the other",
            f"pip uninstall -y {' '.join(versions)} && pip install {keep}",
        )
    if not has_clash:
        yield Check("clashes", "ok", "no two distributions of onnxruntime or OpenCV")
    yield from _onnxruntime_tensorrt_check()


def _onnxruntime_tensorrt_check() -> Iterator[Check]:
    ort, trt = installed_version("onnxruntime-gpu"), installed_version("tensorrt")
    if ort is not None and trt is not None and Version(trt).major != _ONNXRUNTIME_TENSORRT:
        yield Check(
            "tensorrt in onnxruntime",
            "info",
            f"the TensorRT provider of onnxruntime-gpu {ort} needs TensorRT "
            f"{_ONNXRUNTIME_TENSORRT}, but {trt} is installed; fada_deploy does not use it, "
            "because engines run on TensorRT itself",
        )


def _requires_python() -> str:
    try:
        return str(metadata.metadata(_SELF)["Requires-Python"] or "")
    except metadata.PackageNotFoundError:
        return ""


def _extra_names() -> list[str]:
    try:
        return metadata.metadata(_SELF).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return []


def _requirements(extra: str = "") -> list[Requirement]:
    """Return the requirements of the base installation or those that only `extra` adds.

    Requirements whose marker excludes this platform are left out.
    """
    try:
        requirements = [Requirement(line) for line in metadata.requires(_SELF) or []]
    except metadata.PackageNotFoundError:
        return []

    def applies(requirement: Requirement, name: str) -> bool:
        return requirement.marker is None or requirement.marker.evaluate({"extra": name})

    base = [requirement for requirement in requirements if applies(requirement, "")]
    if not extra:
        return base
    return [r for r in requirements if r not in base and applies(r, extra)]


def _extra_requirements(extra: str) -> list[Requirement]:
    """Return the requirements of an extra and of the extras that it includes."""
    result: dict[str, Requirement] = {}
    pending, seen = [extra], {extra}
    while pending:
        for requirement in _requirements(pending.pop(0)):
            if _is_self(requirement):
                included = [name for name in sorted(requirement.extras) if name not in seen]
                pending += included
                seen.update(included)
            else:
                result.setdefault(canonicalize_name(requirement.name), requirement)
    return list(result.values())


def _is_self(requirement: Requirement) -> bool:
    return canonicalize_name(requirement.name) == canonicalize_name(_SELF)


def _find(name: str) -> tuple[str, str | None]:
    """Return the distribution that meets a requirement on `name`, and its version if installed."""
    for candidate in _ALTERNATIVES.get(name, (name,)):
        if (version := installed_version(candidate)) is not None:
            return candidate, version
    return name, None


def _is_met(requirement: Requirement) -> bool:
    version = _find(requirement.name)[1]
    return version is not None and _is_allowed(version, requirement.specifier)


def _is_allowed(version: str, specifier: SpecifierSet) -> bool:
    try:
        return specifier.contains(version, prereleases=True)
    except InvalidVersion:  # the version of a private build cannot be compared
        return True


def _describe(requirement: Requirement) -> str:
    name, version = _find(requirement.name)
    if version is None:
        return f"{name} missing"
    if _is_met(requirement):
        return f"{name} {version}"
    return f"{name} {version} (needs {requirement.specifier})"


def _pip_install(requirements: Sequence[Requirement]) -> str:
    names = (f"'{requirement.name}{requirement.specifier}'" for requirement in requirements)
    return f"pip install {' '.join(names)}"
