"""The comparison with recorded numbers finds spoiled values, and passes on sound ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.parity.harness import load_checks, run_file
from tests.shared import shared


def _spoiled(source: Path, key: str, folder: Path) -> Path:
    with np.load(source) as archive:
        data = {name: archive[name] for name in archive.files}
    data[key] = data[key] + 0.01
    np.savez(folder / source.name, **data)
    return folder / source.name


def test_sound_values_pass_and_each_spoiled_one_fails(tmp_path: Path) -> None:
    load_checks()
    source = shared("golden/fashioniq2020/losses_tirg.npz")
    assert all(c.ok for c in run_file(source).comparisons)
    for key in ("soft_triplet_loss", "true_grad_x1", "bc_grad_x1", "normed_loss", "x1"):
        with np.load(source) as archive:
            if key not in archive.files:
                continue
        assert not all(c.ok for c in run_file(_spoiled(source, key, tmp_path)).comparisons), key


def test_an_unreadable_file_fails_and_an_unknown_one_is_listed(tmp_path: Path) -> None:
    load_checks()
    (tmp_path / "losses_tirg.npz").write_bytes(b"not an archive")
    assert not run_file(tmp_path / "losses_tirg.npz").comparisons[0].ok
    np.savez(tmp_path / "mystery.npz", a=np.ones(2))
    fixture = run_file(tmp_path / "mystery.npz")
    assert not fixture.comparisons and fixture.uncovered() == {"a": "no check knows this file"}
