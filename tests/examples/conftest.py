"""Puts the folder of the example on the import path, since examples are not part of the package."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "perception_app"))
