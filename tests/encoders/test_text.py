"""Text encoders."""

import numpy as np
import pytest
import tensorflow as tf

from tests.parity.harness import run_file
from tests.shared import shared
from tf_fashion.core.errors import UsageError
from tf_fashion.encoders.text import TEXT_ENCODERS, sentence_lengths
from tf_fashion.testing.contracts import run_layer_test

SMALL = {"vocabulary_size": 20, "dim": 6, "embedding_dim": 4, "units": 5}
BOTH_LEAKS = {"legacy_pool_padding": True, "legacy_padding_leak": True}
NAMES = ["bigru", "bilstm", "gru", "lstm", "lstm_gru", "swem"]


def ids():
    return np.array([[3, 4, 5, 6, 7], [8, 9, 0, 0, 0], [1, 0, 2, 0, 0]], dtype=np.int32)


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    options = {**SMALL, "layers": 2 if name in ("lstm_gru", "bigru") else 1, "head": "bn_dense", "word_dropout": 0.2}
    run_layer_test(TEXT_ENCODERS.get(name), options, [ids()], (3, 6), "float32", mixed_precision=name in ("lstm_gru", "swem"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pooling", ["last", "max", "mean"])
def test_longer_padding_changes_nothing(name, pooling):
    encoder = TEXT_ENCODERS.get(name)(**SMALL, pooling=pooling, layers=2)
    short = encoder(ids())
    np.testing.assert_allclose(encoder(np.pad(ids(), [[0, 0], [0, 4]])), short, atol=1e-6)
    alone = encoder(ids()[1:2, :2])
    np.testing.assert_allclose(alone[0], short[1], atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_empty_text_is_finite(name):
    encoder = TEXT_ENCODERS.get(name)(**SMALL)
    assert np.isfinite(encoder(np.zeros((2, 3), np.int32))).all()


def test_lengths():
    np.testing.assert_array_equal(sentence_lengths(ids()), [5, 2, 3])
    encoder = TEXT_ENCODERS.get("lstm")(**SMALL)
    wanted = encoder(np.array([[8, 9, 0]], np.int32), lengths=np.array([3]))
    padded = encoder(np.array([[8, 9, 0, 0, 0]], np.int32), lengths=np.array([3]))
    np.testing.assert_allclose(padded, wanted, atol=1e-6)
    assert np.abs(encoder(np.array([[8, 9, 0]], np.int32)) - wanted).max() > 1e-4


def test_last_state_against_a_plain_layer():
    encoder = TEXT_ENCODERS.get("gru")(**{**SMALL, "dim": None}, head=None)
    out = encoder(ids())
    assert out.shape == (3, 5)
    words = encoder.embedding(ids())
    layer = encoder.stacks[0].forward_layers[0]
    np.testing.assert_allclose(out[1], layer(words[1:2, :2])[0, -1], atol=1e-6)


def test_backward_direction_starts_at_the_last_word():
    encoder = TEXT_ENCODERS.get("bilstm")(**{**SMALL, "dim": None}, head=None, pooling="max")
    out = encoder(ids())
    words = encoder.embedding(ids())[1:2, :2]
    stack = encoder.stacks[0]
    backward = stack.backward_layers[0](words[:, ::-1])
    np.testing.assert_allclose(out[1, 5:], tf.reduce_max(backward[0], 0), atol=1e-6)


def test_embedding_table():
    encoder = TEXT_ENCODERS.get("swem")(**SMALL)
    table = np.arange(80, dtype=np.float32).reshape(20, 4)
    with pytest.raises(UsageError, match="not built"):
        encoder.set_embedding_table(table)
    encoder(ids())
    before = encoder.embedding.embeddings.numpy().copy()
    rows = np.zeros(20, bool)
    rows[3] = True
    encoder.set_embedding_table(table, rows)
    np.testing.assert_array_equal(encoder.embedding.embeddings.numpy()[3], table[3])
    np.testing.assert_array_equal(encoder.embedding.embeddings.numpy()[4], before[4])
    with pytest.raises(UsageError, match=r"\(20, 4\)"):
        encoder.set_embedding_table(table[:, :2])


def test_frozen_words():
    encoder = TEXT_ENCODERS.get("swem")(**SMALL, trainable_embeddings=False)
    encoder(ids())
    assert len(encoder.trainable_variables) == 2


def test_ready_sentence_vectors():
    x = np.random.default_rng(0).normal(size=(4, 7)).astype(np.float32)
    run_layer_test(TEXT_ENCODERS.get("swem"), {"vocabulary_size": None, "dim": 3, "head": "bn_dense"}, [x], (4, 3))


def test_word_dropout_only_in_training():
    encoder = TEXT_ENCODERS.get("swem")(**SMALL, word_dropout=0.9)
    calm = encoder(ids(), training=False)
    np.testing.assert_array_equal(encoder(ids(), training=False), calm)
    assert np.abs(encoder(ids(), training=True) - calm).max() > 1e-4


@pytest.mark.parametrize("name", ["lstm", "lstm_gru"])
def test_padding_leaks_on_request(name):
    encoder = TEXT_ENCODERS.get(name)(**SMALL, pooling="max", legacy_padding_leak=True, layers=2)
    out = encoder(ids())
    every_step = [tf.reduce_max(sequence, axis=1) for sequence in encoder.sequences(ids())[0]]
    np.testing.assert_allclose(out, encoder.head_dense(tf.concat(every_step, axis=1)), atol=1e-6)
    assert np.abs(encoder(np.pad(ids(), [[0, 0], [0, 4]])) - out).max() > 1e-4
    again = type(encoder).from_config(encoder.get_config())
    assert again.legacy_padding_leak and not TEXT_ENCODERS.get(name)(**SMALL).legacy_padding_leak


@pytest.mark.parametrize("option", [{"pooling": "sum"}, {"head": "mlp"}, {"initialization": "he"}, {"dim": None}, BOTH_LEAKS])
def test_wrong_options(option):
    with pytest.raises(UsageError):
        TEXT_ENCODERS.get("lstm")(**{**SMALL, **option})


@pytest.mark.parametrize(
    "name", ["lstm_A", "lstm_B", "lstm_gru_A", "lstm_gru_B", "swem_A", "swem_B", "tirg_lstm", "rtic_lstm", "rtic_lstm_gru"]
)
def test_recorded_numbers(name):
    import tests.parity.checks.text_encoders
    import tests.parity.checks.text_rtic  # noqa: F401

    fixture = run_file(shared(f"golden/fashioniq2020/text_{name}.npz"))
    assert fixture.comparisons and [str(c) for c in fixture.comparisons if not c.ok] == []
    assert fixture.uncovered() == {}
