"""Standardisation by blocks of columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.layers import Standardize
from tf_fashion.layers import standardize as module
from tf_fashion.testing.contracts import run_layer_test


def rows(count: int = 50, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (1000 + 10.0 ** random.uniform(-2, 2, 7) * random.normal(size=(count, 7))).astype(np.float32)


def test_contract() -> None:
    run_layer_test(Standardize, {}, [rows(5)], (5, 7), "float32")
    run_layer_test(Standardize, {}, [rows(5).astype(np.float16)[:, None]], (5, 1, 7), "float32")


def test_blocks_count_by_their_weights_and_rows_have_the_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 8)
    x = rows()
    np.save(tmp_path / "x.npy", x)
    layer = Standardize()
    layer.adapt(np.load(tmp_path / "x.npy", mmap_mode="r"), [4, 2, 1], [1.0, 3.0, 0.0], length=5.0)
    z = layer(x).numpy().astype(np.float64)
    np.testing.assert_allclose(z.mean(0), 0, atol=5e-3)
    squares = np.square(z)
    np.testing.assert_allclose(np.sqrt(squares.sum(1).mean()), 5.0, rtol=1e-4)
    shares = [squares[:, part].sum() / squares.sum() for part in (slice(0, 4), slice(4, 6), slice(6, 7))]
    np.testing.assert_allclose(shares, [0.1, 0.9, 0.0], atol=1e-4)
    np.testing.assert_allclose(z[:, :4].std(0), z[:, 0].std(), rtol=1e-3)
    plain = Standardize()
    plain.adapt(x)
    np.testing.assert_allclose(plain(x).numpy().std(0), 8 / np.sqrt(7), rtol=1e-3)
    plain.adapt(2 * x)
    np.testing.assert_allclose(plain.mean, 2 * x.astype(np.float64).mean(0), rtol=1e-6)


def test_columns_that_do_not_vary_become_0() -> None:
    x = rows(30)
    x[:, 1], x[:, 4] = 0.1, 1000
    x[3, 4] = np.nextafter(np.float32(1000), np.float32(2000))
    layer = Standardize()
    layer.adapt(x, [3, 4])
    z = layer(x).numpy()
    assert layer.factor.numpy()[[1, 4]].tolist() == [0, 0] and (np.delete(layer.factor.numpy(), [1, 4]) > 0).all()
    np.testing.assert_allclose(np.sqrt(np.square(z).sum(1).mean()), 8.0, rtol=1e-4)


def test_messages() -> None:
    x, layer = rows(), Standardize()
    wrong = [
        ((x[0],), r"\(rows, dim\), found \(7,\)"),
        ((x, [3, 3]), r"the sum 7, found \[3, 3\]"),
        ((x, [7, 0]), "the sum 7"),
        ((x, [3, 4], [1.0]), "2 numbers of at least 0"),
        ((x, [3, 4], [1.0, -1.0]), "2 numbers of at least 0"),
        ((x, [3, 4], [0.0, 0.0]), "one of them above"),
        ((x, None, None, 0.0), "length"),
    ]
    for arguments, message in wrong:
        with pytest.raises(UsageError, match=message):
            layer.adapt(*arguments)
    layer.adapt(x)
    with pytest.raises(UsageError, match=r"\(rows, 7\), found \(50, 6\)"):
        layer.adapt(x[:, :6])
    with pytest.raises(DataError, match="The 3 rows of features do not differ"):
        layer.adapt(np.ones((3, 7)))
    with pytest.raises(DataError, match="no rows"):
        layer.adapt(x[:0])
    x[2, 3] = np.inf
    with pytest.raises(DataError, match="Row 2 "):
        layer.adapt(x)
