"""`fada version`: the versions of this package and of the packages that it uses."""

from __future__ import annotations

import platform

import click

from fada_deploy._version import __version__
from fada_deploy.common.system import installed_version
from fada_deploy.common.tables import format_table

# Package → the distributions that provide it.
_DISTRIBUTIONS = {
    "numpy": ("numpy",),
    "opencv": (
        "opencv-python-headless",
        "opencv-python",
        "opencv-contrib-python-headless",
        "opencv-contrib-python",
    ),
    "av": ("av",),
    "torch": ("torch",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-rtx": ("tensorrt-rtx",),
}


@click.command("version")
def command() -> None:
    """Print the versions of fada, Python and the installed packages that it uses."""
    click.echo(version_text())


def version_text() -> str:
    """Return the versions as a table; no package is imported, and missing ones are left out."""
    rows = [
        ("fada", __version__),
        ("python", platform.python_version()),
        ("platform", platform.platform()),
    ]
    for package, distributions in _DISTRIBUTIONS.items():
        for distribution in distributions:
            if (version := installed_version(distribution)) is not None:
                suffix = "" if distribution == package else f" ({distribution})"
                rows.append((package, f"{version}{suffix}"))
    return format_table((), rows, align="ll")
