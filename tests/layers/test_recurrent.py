"""The library's LSTM and GRU give what Keras' give, with gradients."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_fashion.layers.recurrent import GRU, LSTM

PAIRS = [(keras.layers.LSTM, LSTM), (keras.layers.GRU, GRU)]


def both(pair: tuple, units: int, width: int, **options: object) -> list[keras.layers.RNN]:
    random = np.random.default_rng(0)
    layers = [kind(units, return_sequences=True, **options) for kind in pair]
    for layer in layers:
        layer.build((None, None, width))
    values = [random.normal(size=w.shape) for w in layers[0].get_weights()]
    for layer in layers:
        layer.set_weights(values)
    return layers


def results(layer: keras.layers.RNN, x: np.ndarray, states: list[np.ndarray], graph: bool) -> list[np.ndarray]:
    """Steps, and the gradients by the sequence, the first states and the weights."""

    def run(x: tf.Tensor, *states: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([x, *states])
            start = {} if not states else {"initial_state": list(states) if len(states) > 1 else states[0]}
            steps = layer(x, **start)
            total = tf.reduce_sum(tf.sin(steps) * tf.cast(tf.range(1, steps.shape[-1] + 1), steps.dtype))
        return [steps, *tape.gradient(total, [x, *states, *(v.value for v in layer.trainable_variables)])]

    if graph:
        kind = tf.as_dtype(x.dtype)
        signature = [tf.TensorSpec((None, None, x.shape[-1]), kind), *(tf.TensorSpec((None, s.shape[-1]), kind) for s in states)]
        run = tf.function(run, input_signature=signature)
    return [tf.convert_to_tensor(value).numpy() for value in run(tf.constant(x), *map(tf.constant, states))]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize(("rows", "steps"), [(3, 6), (1, 1)])
@pytest.mark.parametrize("with_state", [False, True])
def test_steps_and_gradients_equal_those_of_keras(pair: tuple, rows: int, steps: int, with_state: bool) -> None:
    layers = both(pair, 5, 4, dtype="float64")
    random = np.random.default_rng(1)
    x = random.normal(size=(rows, steps, 4))
    states = [random.normal(size=(rows, 5)) for _ in range(2 if pair[1] is LSTM else 1)] if with_state else []
    for graph in (True, False):
        theirs, ours = (results(layer, x, states, graph) for layer in layers)
        for a, b in zip(theirs, ours, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("pair", PAIRS)
def test_the_states_that_are_asked_for_carry_gradients(pair: tuple) -> None:
    x = tf.constant(np.random.default_rng(2).normal(size=(2, 4, 3)))
    found = []
    for layer in both(pair, 5, 3, dtype="float64", return_state=True):
        with tf.GradientTape() as tape:
            tape.watch(x)
            _, *states = layer(x)
            total = tf.add_n([tf.reduce_sum(tf.sin(state) * (n + 1)) for n, state in enumerate(states)])
        found.append([*states, tape.gradient(total, x)])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(LSTM, {"activation": "relu"}), (GRU, {"reset_after": False}), (GRU, {"go_backwards": True}), (LSTM, {"use_bias": False})],
)
def test_other_variants_are_those_of_keras(kind: type, options: dict) -> None:
    base = keras.layers.LSTM if kind is LSTM else keras.layers.GRU
    theirs, ours = both((base, kind), 4, 3, **options)
    x = np.random.default_rng(3).normal(size=(2, 5, 3)).astype("float32")
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-6)
    masked = both((base, kind), 4, 3)
    mask = np.array([[True] * 5, [True] * 2 + [False] * 3])
    np.testing.assert_allclose(masked[1](x, mask=mask), masked[0](x, mask=mask), rtol=1e-6)


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_half_precision_and_configuration(kind: type) -> None:
    layer = kind(4, return_sequences=True, dtype="mixed_bfloat16")
    x = tf.ones((2, 3, 5), tf.bfloat16)
    with tf.GradientTape() as tape:
        steps = layer(x)
    assert steps.dtype == tf.bfloat16
    gradients = tape.gradient(steps, [v.value for v in layer.trainable_variables])
    assert all(g.dtype == tf.float32 and np.isfinite(g).all() for g in gradients)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is kind and again.get_config() == layer.get_config()
