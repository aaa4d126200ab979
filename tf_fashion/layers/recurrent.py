"""LSTM and GRU with as few products of matrices as the equations allow; for CPUs, where Keras has no fused layer.

Inputs are projected in one product for all steps. The gradient runs through the steps once more for the gates alone, and the
weights' gradients are one product over all steps: a gradient taken step by step reads and writes each matrix at each step, which
at 2048 units costs more than everything else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


def _loop(count: Any, states: tuple, step: Callable[..., tuple], records: int, backwards: bool = False) -> tuple:
    """Runs `states, recorded = step(t, *states)` over t = 0 ... count - 1, or backwards.

    Returns the last states, and each of the `records` of all steps as one tensor `(time, ...)`.
    """
    arrays = tuple(tf.TensorArray(states[0].dtype, count) for _ in range(records))

    def body(number: Any, states: tuple, arrays: tuple) -> tuple:
        t = count - 1 - number if backwards else number
        states, recorded = step(t, *states)
        return number + 1, states, tuple(array.write(t, value) for array, value in zip(arrays, recorded, strict=True))

    shapes = (tf.TensorShape(()), tuple(state.shape for state in states), tuple(tf.TensorShape(None) for _ in arrays))
    _, states, arrays = tf.while_loop(
        lambda number, *_: number < count, body, (0, states, arrays), shape_invariants=shapes, parallel_iterations=1
    )
    return states, tuple(array.stack() for array in arrays)


def _project(steps: Any, kernel: Any) -> Any:
    """`(time, batch, width) @ (width, units)` as one product."""
    shape = tf.shape(steps)
    flat = tf.matmul(tf.reshape(steps, (-1, kernel.shape[0])), kernel)
    return tf.reshape(flat, (shape[0], shape[1], kernel.shape[1]))


def _times_transposed(changes: Any, kernel: Any) -> Any:
    """`changes @ transpose(kernel)` for a few rows; in this order TensorFlow's CPU kernel runs along the rows of the large matrix."""
    return tf.transpose(tf.matmul(kernel, changes, transpose_b=True))


def _input_gradient(changes: Any, kernel: Any) -> Any:
    """The gradient of `_project` by its steps."""
    shape = tf.shape(changes)
    flat = _times_transposed(tf.reshape(changes, (-1, kernel.shape[1])), kernel)
    return tf.reshape(flat, (shape[0], shape[1], kernel.shape[0]))


def _weight_gradient(steps: Any, changes: Any) -> Any:
    """Sum over time and batch of the outer products of two sequences."""
    return tf.matmul(tf.reshape(steps, (-1, steps.shape[-1])), tf.reshape(changes, (-1, changes.shape[-1])), transpose_a=True)


def _lstm_steps(x: Any, kernel: Any, recurrent: Any, bias: Any, h: Any, c: Any) -> tuple:
    """h, c and the gates (i, f, g, o in a row) of all steps, `(time, batch, ...)`."""
    projected = _project(x, kernel) + bias

    def step(t: Any, h: Any, c: Any) -> tuple:
        i, f, g, o = tf.split(projected[t] + tf.matmul(h, recurrent), 4, axis=-1)
        i, f, g, o = tf.sigmoid(i), tf.sigmoid(f), tf.tanh(g), tf.sigmoid(o)
        c = f * c + i * g
        h = o * tf.tanh(c)
        return (h, c), (h, c, tf.concat([i, f, g, o], axis=-1))

    _, records = _loop(tf.shape(x)[0], (h, c), step, 3)
    return records


@tf.custom_gradient
def _lstm(x: Any, kernel: Any, recurrent: Any, bias: Any, h0: Any, c0: Any) -> tuple:
    outputs, cells, gates = _lstm_steps(x, kernel, recurrent, bias, h0, c0)
    units = recurrent.shape[0]
    outputs.set_shape((None, None, units))

    def gradient(d_outputs: Any, d_last: Any) -> tuple:
        before = tf.concat([c0[tf.newaxis], cells[:-1]], axis=0)

        def step(t: Any, dh: Any, dc: Any) -> tuple:
            i, f, g, o = tf.split(gates[t], 4, axis=-1)
            dh += d_outputs[t]
            squashed = tf.tanh(cells[t])
            dc += dh * o * (1.0 - squashed * squashed)
            changes = [dc * g * i * (1.0 - i), dc * before[t] * f * (1.0 - f), dc * i * (1.0 - g * g), dh * squashed * o * (1.0 - o)]
            dz = tf.concat(changes, axis=-1)
            dh = _times_transposed(dz, recurrent)
            return (dh, dc * f), (dz,)

        (dh, dc), (dz,) = _loop(tf.shape(x)[0], (tf.zeros_like(h0), d_last), step, 1, backwards=True)
        dz.set_shape((None, None, 4 * units))
        hidden = tf.concat([h0[tf.newaxis], outputs[:-1]], axis=0)
        dx = _input_gradient(dz, kernel)
        return dx, _weight_gradient(x, dz), _weight_gradient(hidden, dz), tf.reduce_sum(dz, axis=(0, 1)), dh, dc

    return (outputs, cells[-1]), gradient


def _gru_steps(x: Any, kernel: Any, recurrent: Any, bias: Any, h: Any) -> tuple:
    """h, the gates (z, r, n in a row) and the new gate's recurrent part before its reset, of all steps."""
    projected = _project(x, kernel) + bias[0]

    def step(t: Any, h: Any) -> tuple:
        xz, xr, xn = tf.split(projected[t], 3, axis=-1)
        hz, hr, hn = tf.split(tf.matmul(h, recurrent) + bias[1], 3, axis=-1)
        z, r = tf.sigmoid(xz + hz), tf.sigmoid(xr + hr)
        n = tf.tanh(xn + r * hn)
        h = z * h + (1.0 - z) * n
        return (h,), (h, tf.concat([z, r, n], axis=-1), hn)

    _, records = _loop(tf.shape(x)[0], (h,), step, 3)
    return records


@tf.custom_gradient
def _gru(x: Any, kernel: Any, recurrent: Any, bias: Any, h0: Any) -> tuple:
    outputs, gates, resets = _gru_steps(x, kernel, recurrent, bias, h0)
    units = recurrent.shape[0]
    outputs.set_shape((None, None, units))

    def gradient(d_outputs: Any) -> tuple:
        before = tf.concat([h0[tf.newaxis], outputs[:-1]], axis=0)

        def step(t: Any, dh: Any) -> tuple:
            z, r, n = tf.split(gates[t], 3, axis=-1)
            dh += d_outputs[t]
            dn = dh * (1.0 - z) * (1.0 - n * n)
            dz = dh * (before[t] - n) * z * (1.0 - z)
            dr = dn * resets[t] * r * (1.0 - r)
            hidden = tf.concat([dz, dr, dn * r], axis=-1)
            dh = dh * z + _times_transposed(hidden, recurrent)
            return (dh,), (tf.concat([dz, dr, dn], axis=-1), hidden)

        (dh,), (dx, dr) = _loop(tf.shape(x)[0], (tf.zeros_like(h0),), step, 2, backwards=True)
        dx.set_shape((None, None, 3 * units))
        dr.set_shape((None, None, 3 * units))
        biases = tf.stack([tf.reduce_sum(dx, axis=(0, 1)), tf.reduce_sum(dr, axis=(0, 1))])
        return _input_gradient(dx, kernel), _weight_gradient(x, dx), _weight_gradient(before, dr), biases, dh

    return outputs, gradient


def _usual(layer: keras.layers.RNN, sequences: Any, mask: Any) -> bool:
    """Whether a layer computes what the functions above do. GPUs have cuDNN."""
    cell = layer.cell
    return (
        mask is None
        and not isinstance(sequences, keras.KerasTensor)
        and cell.use_bias
        and cell.activation is keras.activations.tanh
        and cell.recurrent_activation is keras.activations.sigmoid
        and not (cell.dropout or cell.recurrent_dropout or layer.go_backwards or layer.stateful or layer.unroll)
        and not tf.config.list_logical_devices("GPU")
    )


def _operands(layer: keras.layers.RNN, sequences: Any, states: list[Any]) -> tuple:
    kind = sequences.dtype
    cell = layer.cell
    weights = [tf.cast(tf.convert_to_tensor(w), kind) for w in (cell.kernel, cell.recurrent_kernel, cell.bias)]
    return tf.transpose(sequences, (1, 0, 2)), *weights, *(tf.cast(state, kind) for state in states)


@keras.saving.register_keras_serializable("tf_fashion")
class LSTM(keras.layers.LSTM):
    """`keras.layers.LSTM`, faster on CPUs (Hochreiter & Schmidhuber, 1997). Arguments, weights and results are the same.

    With a mask, dropout, other activations, and on GPUs, it is Keras' own.
    """

    def inner_loop(self, sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> tuple:
        if not _usual(self, sequences, mask):
            return super().inner_loop(sequences, initial_state, mask, training)
        outputs, last = _lstm(*_operands(self, sequences, initial_state))
        return outputs[-1], tf.transpose(outputs, (1, 0, 2)), [outputs[-1], last]


@keras.saving.register_keras_serializable("tf_fashion")
class GRU(keras.layers.GRU):
    """`keras.layers.GRU`, faster on CPUs, in the variant with the reset after the product (Cho et al., 2014, as in cuDNN).

    Arguments, weights and results are the same. With a mask, dropout, other activations, the reset before the product, and on GPUs,
    it is Keras' own.
    """

    def inner_loop(self, sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> tuple:
        if not self.reset_after or not _usual(self, sequences, mask):
            return super().inner_loop(sequences, initial_state, mask, training)
        outputs = _gru(*_operands(self, sequences, initial_state))
        return outputs[-1], tf.transpose(outputs, (1, 0, 2)), [outputs[-1]]
