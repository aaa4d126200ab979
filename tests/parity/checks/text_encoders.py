"""Recurrent text encoders and heads."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tests.parity.checks import torch_layouts as torch
from tests.parity.harness import Fixture, checks
from tf_fashion.encoders.text import TEXT_ENCODERS


def _head(weights: dict[str, np.ndarray]) -> tuple[str, str, str | None]:
    """The kind of head, the dense layer's name and the batch normalisation's."""
    if "fc_output.0.running_mean" in weights:
        return "bn_dense", "fc_output.1", "fc_output.0"
    return "dense", "fc_output.1" if "fc_output.1.weight" in weights else "fc_output", None


def _load(encoder, weights: dict[str, np.ndarray], cells: list[str], embedding: str | None) -> list:
    """Sets all weights; returns (PyTorch name, variable, converter) of the trained ones."""
    head, dense, norm = _head(weights)
    entries = []
    if embedding:
        encoder.set_embedding_table(weights[embedding])
        entries.append((embedding, encoder.embedding.embeddings, np.asarray))
        for cell, stack in zip(cells, encoder.stacks, strict=True):
            for index, layer in enumerate(stack.forward_layers):
                torch.set_recurrent(layer, weights, cell, index)
                entries += torch.variables_of(layer, cell, cell, index)
    torch.set_dense(encoder.head_dense, weights, dense)
    entries += torch.variables_of(encoder.head_dense, "dense", dense)
    if norm:
        torch.set_norm(encoder.head_norm, weights, norm)
        entries += torch.variables_of(encoder.head_norm, "norm", norm)
    return entries


def _dense_gradient(gradient) -> np.ndarray:
    return tf.convert_to_tensor(gradient).numpy()


def _compare_mode(fixture: Fixture, encoder, entries, inputs, training, out, cotangent, prefix) -> None:
    x = tf.constant(inputs[0])
    is_vector = x.dtype.is_floating
    with tf.GradientTape() as tape:
        if is_vector:
            tape.watch(x)
        value = encoder(x, *inputs[1:], training=training)
        total = tf.reduce_sum(value * fixture.input(cotangent))
    gradients = tape.gradient(total, [*([x] if is_vector else []), *(v.value for _, v, _ in entries)])
    fixture.compare(out, value, rtol=1e-5, atol=1e-5)
    if is_vector:
        fixture.compare(f"{prefix}x", gradients.pop(0), rtol=1e-4, atol=1e-5)
    for (theirs, _, convert), gradient in zip(entries, gradients, strict=True):
        atol = torch.gradient_atol(fixture.data[f"{prefix}{theirs}"])
        fixture.compare(f"{prefix}{theirs}", convert(_dense_gradient(gradient)), rtol=1e-4, atol=atol)


def _compare_statistics(fixture: Fixture, encoder, before: dict[str, np.ndarray], rows: int) -> None:
    norm = encoder.head_norm
    if norm is not None:
        fixture.compare("after.fc_output.0.running_mean", norm.moving_mean.numpy(), rtol=1e-5, atol=1e-6)
        variance = torch.unbiased_variance(norm, before["fc_output.0.running_var"], rows)
        fixture.compare("after.fc_output.0.running_var", variance, rtol=1e-5, atol=1e-6, note="Keras' n brought to n - 1")


@checks(r"text_(lstm|lstm_gru|tirg_lstm|gru)(_[AB])?\.npz")
def text_recurrent(fixture: Fixture) -> None:
    weights = fixture.inputs_below("w.")
    ids, lengths = fixture.input("ids"), fixture.input("lengths")
    cells = [cell for cell in ("lstm", "gru") if f"{cell}.weight_ih_l0" in weights]
    embedding = next(key for key in weights if key.startswith("embedding_layer"))
    head, dense, _ = _head(weights)
    encoder = TEXT_ENCODERS.get("_".join(cells))(
        vocabulary_size=weights[embedding].shape[0],
        embedding_dim=weights[embedding].shape[1],
        units=weights[f"{cells[0]}.weight_hh_l0"].shape[1],
        layers=sum(f"{cells[0]}.weight_ih_l{k}" in weights for k in range(9)),
        dim=weights[f"{dense}.weight"].shape[0],
        head=head,
        dropout=0.0,
        pooling="last",
    )
    encoder.build(ids.shape)
    entries = _load(encoder, weights, cells, embedding)
    sequences, _ = encoder.sequences(ids, lengths, training=False)
    for cell, sequence in zip(cells, sequences, strict=True):
        if f"{cell}_seq" in fixture:
            fixture.compare(f"{cell}_seq", np.transpose(sequence, (1, 0, 2)), rtol=1e-5, atol=1e-6)
    dotted = "eval.R" in fixture
    cotangent, prefix = ("eval.R", "eval.grad.") if dotted else ("R_eval", "eval_grad.")
    _compare_mode(fixture, encoder, entries, (ids, lengths), False, "out_eval", cotangent, prefix)
    if "out_train_nodrop" in fixture:
        _compare_mode(fixture, encoder, entries, (ids, lengths), True, "out_train_nodrop", "R_train", "train_grad.")
        _compare_statistics(fixture, encoder, weights, len(ids))


@checks(r"text_swem_[AB]\.npz")
def text_swem(fixture: Fixture) -> None:
    weights, x = fixture.inputs_below("w."), fixture.input("x")
    head, dense, _ = _head(weights)
    encoder = TEXT_ENCODERS.get("swem")(vocabulary_size=None, dim=weights[f"{dense}.weight"].shape[0], head=head)
    encoder.build(x.shape)
    entries = _load(encoder, weights, [], None)
    _compare_mode(fixture, encoder, entries, (x,), False, "out_eval", "R_eval", "eval_grad.")
    _compare_mode(fixture, encoder, entries, (x,), True, "out_train", "R_train", "train_grad.")
    _compare_statistics(fixture, encoder, weights, len(x))
