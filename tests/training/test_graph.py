"""RTIC-GCN's graph and its stream."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.layers.test_graph import normalised
from tests.parity.harness import run_file
from tests.shared import shared
from tf_fashion.composers import COMPOSERS
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.training.graph import GraphStream, build_graph, graph_features, similarity_threshold


def features(nodes=30, dim=6, text_dim=4, seed=0):
    random = np.random.default_rng(seed)
    return [random.normal(size=(nodes, width)).astype(np.float32) for width in (dim, text_dim, dim, dim)]


def similarities(target, composed):
    target, composed = (x / np.linalg.norm(x.astype(float), axis=1, keepdims=True) for x in (target, composed))
    both = np.concatenate([target, composed], axis=1) / 2**0.5
    return (both @ both.T + 1) / 2


@pytest.mark.parametrize(("ratio", "block"), [(0.01, 64), (0.2, 7), (0.198, 29), (0.8, 30), (1.0, 1)])
def test_graph_equals_the_plain_formula(ratio, block):
    image, text, target, composed = features()
    graph = build_graph(image, text, target, composed, ratio, 0.3, block)
    similar = similarities(target, composed)
    wanted = next(k for k in range(100, 0, -1) if (similar >= k / 100 - 1e-9).mean() >= ratio)
    assert graph.threshold == wanted / 100
    matrix = similar >= wanted / 100 - 1e-9
    np.testing.assert_array_equal(graph.adjacency.neighbours(np.arange(30)), matrix)
    np.testing.assert_allclose(graph.adjacency.matmul(tf.eye(30)), normalised(matrix.astype(float), 0.3), rtol=1e-5, atol=1e-7)


def test_wrong_features():
    image, text, target, composed = features()
    with pytest.raises(UsageError, match="ratio"):
        build_graph(image, text, target, composed, ratio=0.0)
    with pytest.raises(DataError, match=r"one N.*\(29, 6\)"):
        build_graph(image, text, target[1:], composed)
    with pytest.raises(DataError, match="composed holds NaN"):
        build_graph(image, text, target, composed * np.nan)
    opposite = np.array([[1.0, 0.0], [-1.0, 0.0]], np.float32)
    with pytest.raises(DataError, match="smaller ratio"):
        similarity_threshold(graph_features(opposite, opposite), 0.9)


def stream(composer="rtic", **options):
    keras.utils.set_random_seed(3)
    graph = build_graph(*features(), ratio=0.3, tau=0.4, layout=options.pop("layout", "auto"))
    return GraphStream(COMPOSERS.get(composer)(), graph, 5, **options)


@pytest.mark.parametrize("layout", ["bits", "sparse"])
@pytest.mark.parametrize("balanced", [False, True])
def test_stream_equals_the_dense_formula(layout, balanced):
    layer = stream(class_balanced=balanced, layout=layout)
    query, rows = np.random.default_rng(4).normal(size=(3, 6)).astype(np.float32), np.array([2, 0, 29])
    loss = layer(query, rows, training=False)
    # The convolutions start so small that the loss would hardly depend on them.
    for convolution in (layer.first, layer.second):
        convolution.kernel.assign(convolution.kernel * 40.0)
        convolution.bias.assign(convolution.bias + 0.3)
    loss = layer(query, rows, training=False)
    z = layer.graph.adjacency.neighbours(np.arange(30)).numpy()
    a = normalised(z.astype(float), 0.4)
    nodes = layer.composer(layer.graph.image, layer.graph.text).numpy()
    hidden = np.maximum(a @ (nodes @ layer.first.kernel.numpy()) + layer.first.bias.numpy(), 0.0)
    p = 1 / (1 + np.exp(-query @ (a @ (hidden @ layer.second.kernel.numpy()) + layer.second.bias.numpy()).T))
    losses = -np.where(z[rows] == 1, np.log(p), np.log(1 - p))
    wanted = (losses[z[rows] == 1].mean() + losses[z[rows] == 0].mean()) / 2 if balanced else losses.mean()
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)


def test_training_lowers_the_loss():
    layer = stream("concat")
    image, text, *_ = features()
    rows = np.arange(16)
    layer(image[:16], rows)
    optimizer = keras.optimizers.Adam(0.03)
    query = keras.Variable(image[:16], name="query")
    variables = [*layer.trainable_variables, query]
    assert {v.path.split("/")[-1] for v in variables} >= {"gamma", "kernel", "bias"} and len(variables) == 13

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = layer(query.value, rows, training=True)
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
        return loss

    losses = [float(step()) for _ in range(100)]
    assert losses[-1] < 0.6 * losses[0]


def test_mixed_precision_and_maps():
    layer = stream("rtic", dtype="mixed_bfloat16")
    loss = layer(np.ones((2, 6), np.float32), np.array([0, 1]), training=True)
    assert loss.dtype == "float32" and np.isfinite(loss)
    with pytest.raises(UsageError, match="feature maps"):
        stream("film")


def test_recorded_numbers():
    import tests.parity.checks.rtic_gcn  # noqa: F401

    fixture = run_file(shared("golden/fashioniq2020/rtic_gcn.npz"))
    assert fixture.comparisons and [str(c) for c in fixture.comparisons if not c.ok] == []
    assert fixture.uncovered() == {}
