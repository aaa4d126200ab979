"""PyTorch's layouts of weights against ours, both ways: weights go in, gradients and statistics come out."""

from __future__ import annotations

import keras
import numpy as np

Arrays = dict[str, np.ndarray]


def set_dense(layer: keras.layers.Layer, weights: Arrays, name: str) -> None:
    layer.set_weights([weights[f"{name}.weight"].T, weights[f"{name}.bias"]])


def set_conv(layer: keras.layers.Layer, weights: Arrays, name: str) -> None:
    layer.set_weights([weights[f"{name}.weight"].transpose(2, 3, 1, 0), weights[f"{name}.bias"]])


def set_norm(layer: keras.layers.Layer, weights: Arrays, name: str) -> None:
    layer.set_weights([weights[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")])


def _reorder(array: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    gates = np.split(array, len(order), axis=0)
    return np.concatenate([gates[k] for k in order], axis=0)


# PyTorch: i f g o and r z n; Keras: i f c o and z r h. The swap of the first two is its own inverse.
_ORDERS = {"lstm": (0, 1, 2, 3), "gru": (1, 0, 2)}


def set_recurrent(layer: keras.layers.Layer, weights: Arrays, cell: str, index: int) -> None:
    order = _ORDERS[cell]
    part = {p: _reorder(weights[f"{cell}.{p}_l{index}"], order) for p in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    bias = part["bias_ih"] + part["bias_hh"] if cell == "lstm" else np.stack([part["bias_ih"], part["bias_hh"]])
    layer.set_weights([part["weight_ih"].T, part["weight_hh"].T, bias])


def variables_of(layer: keras.layers.Layer, kind: str, name: str, index: int = 0) -> list[tuple[str, keras.Variable, callable]]:
    """Pairs of PyTorch name and our trained variable, with the function that brings our layout to PyTorch's."""
    if kind == "dense":
        return [(f"{name}.weight", layer.kernel, np.transpose), (f"{name}.bias", layer.bias, np.asarray)]
    if kind == "conv":
        return [
            (f"{name}.weight", layer.kernel, lambda x: np.transpose(x, (3, 2, 0, 1))),
            (f"{name}.bias", layer.bias, np.asarray),
        ]
    if kind == "norm":
        return [(f"{name}.weight", layer.gamma, np.asarray), (f"{name}.bias", layer.beta, np.asarray)]
    order = _ORDERS[kind]
    weights = layer.cell

    def kernel(x: np.ndarray) -> np.ndarray:
        return _reorder(np.transpose(x), order)

    biases = [(lambda x: _reorder(x, order)) if kind == "lstm" else (lambda x, row=row: _reorder(x[row], order)) for row in (0, 1)]
    return [
        (f"{name}.weight_ih_l{index}", weights.kernel, kernel),
        (f"{name}.weight_hh_l{index}", weights.recurrent_kernel, kernel),
        (f"{name}.bias_ih_l{index}", weights.bias, biases[0]),
        (f"{name}.bias_hh_l{index}", weights.bias, biases[1]),
    ]


def unbiased_variance(layer: keras.layers.BatchNormalization, before: np.ndarray, rows: int) -> np.ndarray:
    """The moving variance that PyTorch would have after the one step that led here from `before`.

    PyTorch takes up the batch's variance with n - 1 in the denominator, Keras with n.
    """
    batch = (layer.moving_variance.numpy() - 0.9 * before) / 0.1
    return 0.9 * before + 0.1 * batch * rows / (rows - 1)


def gradient_atol(recorded: np.ndarray) -> float:
    """Absolute tolerance of a gradient: half the relative one of its largest element.

    Small elements are sums of large terms that cancel; through a batch normalisation over a handful of rows even more so.
    """
    return max(1e-5, 5e-5 * float(np.abs(recorded).max(initial=0.0)))
