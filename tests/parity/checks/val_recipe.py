"""The rule by which the recordings of VAL make their weights from the variables' names."""

from __future__ import annotations

import zlib

import numpy as np


def recipe(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """float32 values of the variable `name` of TF1."""
    random = np.random.RandomState((zlib.crc32(name.encode("utf-8")) + seed) % 2**32)
    last = name.rsplit("/", 1)[-1]
    if last == "moving_variance":
        return (0.5 + random.random_sample(shape)).astype(np.float32)
    draw = random.standard_normal(shape)
    if last in ("moving_mean", "beta", "bias", "biases"):
        value = 0.1 * draw
    elif last == "gamma":
        value = 1 + 0.1 * draw
    elif last == "depthwise_weights":
        value = draw * np.sqrt(2 / (shape[0] * shape[1]))
    elif last == "weights":
        value = draw * np.sqrt(2 / (shape[0] * shape[1] * shape[2]))
        if name.endswith("/conv3/weights"):
            value = value * 0.25
    elif last == "kernel":
        value = draw / np.sqrt(shape[0])
    elif last.startswith("init_state"):
        value = 0.3 * draw
    elif last == "token_embedding_weights":
        value = 0.5 * draw
    elif last == "r_weight":
        value = 0.7 + 0.1 * draw
    elif last == "weight":
        value = 0.4 + 0.1 * draw
    else:
        raise KeyError(f"The recipe has no rule for {name}.")
    return np.asarray(value, dtype=np.float64).astype(np.float32)
