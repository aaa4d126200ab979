import string

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.inputs.text import (
    WordTokenizer,
    build_vocabulary,
    join_caption_tensor,
    join_captions,
    legacy_caption_order,
    load_spelling,
    tokenize,
)

WORDS = ["is", "black", "vneck", "t-shirt", "with", "sleeves", "ombr"]


def test_rules():
    assert tokenize("Is V-neck, OMBRÉ; 3/4\x0bsleeve\x1c!") == ["is", "vneck", "ombr", "34", "sleeve"]
    assert tokenize("[CLS] a [SEP] b") == ["cls", "a", "sep", "b"]
    assert tokenize("[CLS] a[SEP]b", markers=True) == ["[CLS]", "a", "[SEP]", "b"]
    assert tokenize("tshirt", "fashion_iq") == ["t-shirt"]
    assert tokenize(" \t\n") == []


def test_spelling_sources(tmp_path):
    assert len(load_spelling("fashion_iq")) == 778
    file = tmp_path / "table.tsv"
    file.write_text("colur\tcolour\ndotflower\tdot flower\n")
    assert tokenize("colur dotflower", str(file)) == ["colour", "dot flower"]
    file.write_text("colur\tcolour\nbroken line\n")
    with pytest.raises(DataError, match="line 2"):
        load_spelling(str(file))
    with pytest.raises(UsageError, match="no such file"):
        load_spelling(str(tmp_path / "none.tsv"))


def test_vocabulary_orders():
    captions = ["is Black", "is a red one", "a"]
    assert build_vocabulary(captions) == ["is", "black", "a", "red", "one"]
    assert build_vocabulary(captions, "alphabetical", min_count=2) == ["a", "is"]
    with pytest.raises(UsageError):
        build_vocabulary(captions, "random")


def test_distinct_markers_by_default_and_all_zero_in_legacy():
    text = ["[CLS] is black [SEP] zzz cls"]
    assert WordTokenizer(WORDS)(text).numpy().tolist() == [[2, 4, 5, 3, 1, 1]]
    assert WordTokenizer(WORDS, legacy_markers=True)(text).numpy().tolist() == [[0, 3, 4, 0, 0, 0]]
    tirg = WordTokenizer(WORDS, specials=["<UNK>"])
    assert tirg(text).numpy().tolist() == [[0, 1, 2, 0, 0, 0]]


def test_empty_texts_and_lengths():
    layer = WordTokenizer(WORDS)
    assert layer(["", "!?"]).numpy().tolist() == [[0], [0]]
    ids, lengths = layer(np.array(["is black", ""]), return_lengths=True)
    assert ids.numpy().tolist() == [[4, 5], [0, 0]] and lengths.numpy().tolist() == [2, 0]
    assert layer(tf.constant([], tf.string)).shape == (0, 1)


def test_lengths_fixed_and_cut():
    text = ["is black with sleeves", "is"]
    assert WordTokenizer(WORDS, max_length=2)(text).shape == (2, 2)
    assert WordTokenizer(WORDS, max_length=6, pad_to_max_length=True)(text).shape == (2, 6)
    for bad in ({"max_length": 0}, {"pad_to_max_length": True}):
        with pytest.raises(UsageError):
            WordTokenizer(WORDS, **bad)
    with pytest.raises(UsageError, match="more than once"):
        WordTokenizer(["a", "b", "a"])


ALPHABET = st.one_of(
    st.text(alphabet=string.ascii_letters + string.punctuation + string.whitespace + "\x1c\x1d\x1e\x1f\x00éÉKſ\ue000\u2028"),
    st.text(),
    st.lists(st.sampled_from([*WORDS, "[CLS]", "[SEP]", "[PAD]", "tshirt", "T-shirt", "V-Neck", "ombré"])).map(" ".join),
)
LAYERS = [
    WordTokenizer([*WORDS, "a", "e", "0"], spelling="fashion_iq"),
    WordTokenizer([*WORDS, "a", "e", "0"], legacy_markers=True),
    WordTokenizer(WORDS, spelling={"is": "black", "black": "is", "a": "[PAD]"}, max_length=3),
]


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(ALPHABET, min_size=1, max_size=8))
def test_graph_equals_python(texts):
    for layer in LAYERS:
        assert layer.ragged(texts).to_list() == [layer.encode(text) for text in texts]


def test_invalid_utf8_is_dropped():
    assert LAYERS[0](tf.constant([b"is\xff bl\xc3ack"])).numpy().tolist() == [[4, 5]]


def test_saved_with_the_model_and_in_tf_data(tmp_path):
    texts = ["Is black, with sleeves", "[CLS] ombré [SEP] tshirt"]
    inputs = keras.Input((), dtype="string")
    layer = WordTokenizer(WORDS, spelling="fashion_iq", name="words")
    model = keras.Model(inputs, keras.layers.Embedding(20, 3)(layer(inputs)))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    expected = layer(texts).numpy()
    np.testing.assert_array_equal(loaded.get_layer("words")(texts), expected)
    np.testing.assert_array_equal(loaded(tf.constant(texts)), model(tf.constant(texts)))
    data = tf.data.Dataset.from_tensor_slices(texts).batch(2).map(layer)
    np.testing.assert_array_equal(next(iter(data)), expected)

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("ids", lambda text: layer(text), input_signature=[tf.TensorSpec((None,), tf.string)])
    archive.write_out(str(tmp_path / "export"), verbose=False)
    np.testing.assert_array_equal(tf.saved_model.load(str(tmp_path / "export")).ids(tf.constant(texts)), expected)


def test_joining():
    assert join_captions([" a b", "c "]) == "[CLS] a b [SEP] c"
    assert join_captions(["a", "b"], "rtic") == "a [SEP] b"
    assert join_captions(["a", "b"], "and") == "a and b"
    assert join_captions(["a", "b"], "starter_kit") == "a <and> b"
    assert join_captions(["is Long. ", "Red?"], "clip4cir") == "Is long and Red"
    assert join_captions(["is Long. "], "clip4cir") == "Is long"
    assert join_captions(["a", ""]) == "[CLS] a [SEP] "
    with pytest.raises(UsageError, match="Known"):
        join_captions(["a", "b"], "other")
    with pytest.raises(DataError):
        join_captions(["a", "b", "c"])


def test_joining_in_graph():
    pairs = [["a", "b "], ["c", ""]] * 20
    for style in ("fiq2020", "rtic", "and", "starter_kit"):
        assert [t.decode() for t in join_caption_tensor(pairs, style).numpy()] == [join_captions(pair, style) for pair in pairs]
    mixed = [t.decode() for t in join_caption_tensor(pairs, "and", seed=tf.constant([1, 2])).numpy()]
    assert set(mixed) == {"a and b", "b and a", "c and ", " and c"}


def test_legacy_order_is_one_stream():
    whole, parts = legacy_caption_order([30]), legacy_caption_order([10, 20])
    np.testing.assert_array_equal(np.concatenate(parts), whole[0])
    assert whole[0].dtype == np.uint8 and set(whole[0]) == {0, 1}
