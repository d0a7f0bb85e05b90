"""What comes with the suite: its folder and the demo model, found from any working directory."""

from __future__ import annotations

from pathlib import Path

SUITE_DIR = Path(__file__).resolve().parent.parent

DEMO_MODEL_PATH = SUITE_DIR / "demo_model"
"""Folder of the bundled model and its tokenizer."""


def model_place(name: str) -> str:
    """`name`, or the bundled model's folder for "demo_model" where no folder of that name is."""
    is_bundled = name == DEMO_MODEL_PATH.name and not Path(name).is_dir()
    return str(DEMO_MODEL_PATH) if is_bundled else name
