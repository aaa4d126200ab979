"""Products with a graph's normalised adjacency, and convolutions on it."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_fashion.core.errors import UsageError
from tf_fashion.layers import Adjacency, GraphConvolution
from tf_fashion.layers import graph as graph_module


def neighbours(nodes, density, seed=0):
    """A 0/1 matrix that need not be symmetric, with ones on the diagonal and one node alone."""
    matrix = np.random.default_rng(seed).uniform(size=(nodes, nodes)) < density
    matrix[0] = False
    np.fill_diagonal(matrix, True)
    return matrix


def normalised(matrix, tau):
    others = matrix - np.eye(len(matrix))
    p = tau * others / np.maximum(others.sum(1, keepdims=True), 1) + np.eye(len(matrix))
    scale = p.sum(1) ** -0.5
    return scale[:, None] * p.T * scale[None, :]


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 40), st.floats(0.0, 1.0), st.floats(0.0, 3.0), st.integers(0, 100))
def test_products_equal_the_dense_formula(nodes, density, tau, seed):
    matrix = neighbours(nodes, density, seed)
    random = np.random.default_rng(seed)
    x, upstream = (random.normal(size=(nodes, 3)).astype(np.float32) for _ in range(2))
    wanted = normalised(matrix.astype(float), tau)
    for layout in ("bits", "sparse"):
        adjacency = Adjacency.from_matrix(matrix, tau, layout)
        t = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(t)
            out = adjacency.matmul(t)
            total = tf.reduce_sum(out * upstream)
        np.testing.assert_allclose(out, wanted @ x, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(tape.gradient(total, t), wanted.T @ upstream, rtol=1e-4, atol=1e-5)


def test_many_blocks_inside_a_graph(monkeypatch):
    monkeypatch.setattr(graph_module, "UNPACKED_ELEMENTS", 37 * 5)
    matrix = neighbours(37, 0.3)
    adjacency = Adjacency.from_matrix(matrix, 0.4)
    assert adjacency.layout == "bits"
    x = np.random.default_rng(1).normal(size=(37, 2)).astype(np.float32)

    @tf.function
    def value_and_gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            out = adjacency.matmul(x)
            total = tf.reduce_sum(out**2)
        return out, tape.gradient(total, x)

    out, gradient = value_and_gradient(tf.constant(x))
    wanted = normalised(matrix.astype(float), 0.4)
    np.testing.assert_allclose(out, wanted @ x, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient, 2 * wanted.T @ (wanted @ x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(tf.sparse.to_dense(adjacency.sparse()), wanted, rtol=1e-5)


def test_neighbours_and_layout():
    matrix = neighbours(21, 0.2)
    adjacency = Adjacency.from_matrix(matrix, 0.1)
    np.testing.assert_array_equal(adjacency.neighbours([4, 0, 20]), matrix[[4, 0, 20]])
    np.testing.assert_allclose(adjacency.density, matrix.mean())
    assert Adjacency.from_matrix(np.eye(200), 0.1).layout == "sparse"
    np.testing.assert_array_equal(graph_module._degrees(np.packbits(matrix, axis=1)), matrix.sum(1))


@pytest.mark.parametrize(
    ("bits", "tau", "layout", "message"),
    [
        (np.ones((9, 1), np.uint8), 0.1, "auto", "numpy.packbits"),
        (np.ones((8, 1), np.int64), 0.1, "auto", "numpy.packbits"),
        (np.full((8, 1), 255, np.uint8), -1.0, "auto", "tau"),
        (np.full((8, 1), 255, np.uint8), 1.0, "dense", "layout"),
        (np.zeros((8, 1), np.uint8), 1.0, "auto", "own neighbour"),
    ],
)
def test_wrong_graphs(bits, tau, layout, message):
    with pytest.raises(UsageError, match=message):
        Adjacency(bits, tau, layout)


@pytest.mark.parametrize("units", [3, 11])
def test_convolution(units):
    matrix = neighbours(10, 0.4)
    adjacency = Adjacency.from_matrix(matrix, 0.5)
    x = np.random.default_rng(2).normal(size=(10, 6)).astype(np.float32)
    layer = GraphConvolution(units, gain=1.0)
    layer(x, adjacency=adjacency)
    layer.bias.assign(np.arange(units))
    wanted = normalised(matrix.astype(float), 0.5) @ (x @ layer.kernel.numpy()) + np.arange(units)
    np.testing.assert_allclose(layer(x, adjacency=adjacency), wanted, rtol=1e-4, atol=1e-5)
    again = keras.saving.deserialize_keras_object(json.loads(json.dumps(keras.saving.serialize_keras_object(layer))))
    assert again.get_config() == layer.get_config()


def test_convolution_starts_small_and_stays_in_float32():
    layer = GraphConvolution(400, dtype="mixed_float16")
    layer.build((None, 300))
    assert layer.compute_dtype == "float32"
    np.testing.assert_allclose(layer.kernel.numpy().std(), 0.02 * (2 / 700) ** 0.5, rtol=0.02)
    assert (layer.bias.numpy() == 0).all()
