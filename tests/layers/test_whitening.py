"""Whitening and pooling over scales."""

from __future__ import annotations

import numpy as np
import pytest

from tf_fashion.core.errors import UsageError
from tf_fashion.layers import Whitening, pool_scales
from tf_fashion.testing.contracts import run_layer_test


def rows(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_contract() -> None:
    run_layer_test(Whitening, {"components": 4, "power": 0.25, "multiplier": 2.0}, [rows(5, 6)], (5, 4), "float32")
    run_layer_test(Whitening, {"components": 6, "whiten": False, "normalize": False}, [rows(5, 6)], (5, 6), "float32")


def test_whitened_rows_have_variance_one() -> None:
    x = rows(400, 8) @ rows(8, 8)
    mean = x.mean(0)
    variance, vectors = np.linalg.eigh(np.cov(x.T))
    layer = Whitening.of(mean, vectors.T[::-1], variance[::-1], 5, normalize=False)
    white = layer(x).numpy()
    np.testing.assert_allclose(np.cov(white.T), np.eye(5), atol=1e-3)
    unit = Whitening.of(mean, vectors.T[::-1], variance[::-1], 5)(x).numpy()
    np.testing.assert_allclose(unit, white / np.linalg.norm(white, axis=1, keepdims=True), atol=1e-5)
    assert np.isfinite(Whitening.of(mean, vectors.T, variance)(mean[None])).all()


def test_messages() -> None:
    good = [np.zeros(4), np.eye(4)[:3], np.ones(3)]
    with pytest.raises(UsageError, match=r"found \(5,\), \(3, 4\) and \(3,\)"):
        Whitening.of(np.zeros(5), *good[1:])
    with pytest.raises(UsageError, match="expected 1 to 3, found 4"):
        Whitening.of(*good, dim=4)
    with pytest.raises(UsageError, match="variances above 0"):
        Whitening.of(*good[:2], np.array([1.0, 1.0, 0.0]))
    assert Whitening.of(*good[:2], np.array([1.0, 1.0, 0.0]), 2).components == 2
    with pytest.raises(UsageError, match="only 4 values"):
        Whitening(5)(np.zeros((1, 4), np.float32))


def test_scales() -> None:
    x = rows(3, 4, 5)
    mean = x.mean(0)
    np.testing.assert_allclose(pool_scales(x), mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-6)
    # Values near 0 are raised to the least size.
    same = np.repeat(pool_scales(np.abs(x) + 0.3).numpy()[None], 2, axis=0) * [1, -1, 1, 1, -1]
    np.testing.assert_allclose(pool_scales(same, "gem"), same[0], atol=1e-5)
    with pytest.raises(UsageError, match="mean, gem"):
        pool_scales(x, "max")
