"""Finds the folder of recorded numbers and real photos that some tests need; they skip where it is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared(relative: str) -> Path:
    """Path below the shared folder (`TF_FASHION_SHARED`, else `../shared` beside the checkout), or skips the test."""
    root = Path(os.environ.get("TF_FASHION_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    path = root / relative
    if not path.exists():
        pytest.skip(f"needs {path} (set TF_FASHION_SHARED to the folder that holds {relative})")
    return path
