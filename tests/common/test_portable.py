"""Settings without the paths of a machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fada_deploy.common.portable import shared_provenance, without_paths


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"src": "gta5", "src_root": "/data/GTA5"}, {"src": "gta5", "src_root": None}),
        ({"tgt": "/home/a/drives/"}, {"tgt": "drives"}),
        ({"tgt": "C:\\videos\\x.mp4"}, {"tgt": "x.mp4"}),
        ({"start": "builtin", "init": "../w.pth"}, {"start": "builtin", "init": "w.pth"}),
        (
            {"translation": {"semantic_network": "/home/a/runs/source/weights.safetensors"}},
            {"translation": {"semantic_network": "weights.safetensors"}},
        ),
        (
            {"ego_mask": None, "seed": 1, "size": [1, 2]},
            {"ego_mask": None, "seed": 1, "size": [1, 2]},
        ),
        (
            {"extra_sources": [{"name": "/a/b.toml", "root": "/a", "weight": 2.0}]},
            {"extra_sources": [{"name": "b.toml", "root": None, "weight": 2.0}]},
        ),
    ],
)
def test_paths_become_names(settings: dict[str, object], expected: dict[str, object]) -> None:
    assert without_paths(settings) == expected


def test_provenance_names_data_by_fingerprint(tmp_path: Path) -> None:
    provenance = {"stage": "source", "config": {"tgt": "/x/y", "tgt_root": "/z"}}
    assert shared_provenance(provenance, tmp_path) == {
        "stage": "source",
        "config": {"tgt": "y", "tgt_root": None},
    }
    document = {"target": "a" * 64, "secret": "a word", "list": [1]}
    (tmp_path / "data.json").write_text(json.dumps(document))
    assert "data" not in shared_provenance(provenance, tmp_path)  # not the folder of a run
    (tmp_path / "config.json").write_text("{}")
    assert shared_provenance(provenance, tmp_path)["data"] == {"target": "a" * 64}
    (tmp_path / "data.json").write_text("{")
    assert "data" not in shared_provenance(provenance, tmp_path)
    assert provenance["config"] == {"tgt": "/x/y", "tgt_root": "/z"}
