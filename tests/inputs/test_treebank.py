"""The treebank rules, VAL's clean-up, and vocabularies with ignored words."""

import keras
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_fashion.core.errors import UsageError
from tf_fashion.inputs.text import WordTokenizer, build_vocabulary, spell_out_marks, tokenize

SENTENCES = {
    "is a white V-neck": ["is", "a", "white", "v-neck"],
    "it isn't red, it's blue.": ["it", "is", "n't", "red", ",", "it", "'s", "blue", "."],
    'Has the wearer\'s "polka dot" logo': ["has", "the", "wearer", "'s", "``", "polka", "dot", "''", "logo"],
    "3/4 sleeves (and 1,000 dots)!": ["3/4", "sleeves", "(", "and", "1,000", "dots", ")", "!"],
    "i cannot say... gonna be longer": ["i", "can", "not", "say", "...", "gon", "na", "be", "longer"],
    "ladies' shoes -- not men's": ["ladies", "'", "shoes", "--", "not", "men", "'s"],
    "'tis more'n d'ye wanna": ["'t", "is", "more", "'n", "d", "'ye", "wan", "na"],
    "": [],
    " \t ": [],
}


@pytest.mark.parametrize(("text", "words"), SENTENCES.items())
def test_words(text, words):
    assert tokenize(text, rules="treebank") == words


ALPHABET = st.sampled_from([*"abcdmnst'\"`.,:;!?()[]{}<>-&*$%# \t\n1é“”’", " can't ", "gonna ", "--", "...", "''", "d'ye ", " "])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(ALPHABET, max_size=14).map("".join), min_size=1, max_size=6), st.booleans())
def test_the_graph_reads_as_python_does(texts, marks):
    words = build_vocabulary(texts, rules="treebank", marks=marks)
    tokenizer = WordTokenizer(words, specials=["<UNK>"], rules="treebank", marks=marks)
    assert tokenizer.ragged(texts).to_list() == [tokenizer.encode(text) for text in texts]
    assert all(number > 0 for row in tokenizer.ragged(texts).to_list() for number in row)


def test_marks_are_spelled_out_without_blanks():
    assert spell_out_marks(" no sleeves. ") == "no sleevesdotmark"
    assert tokenize("no sleeves. is it? 3 * b&w", marks=True) == [
        "no",
        "sleevesdotmark",
        "is",
        "itquestionmark",
        "3",
        "starmark",
        "bandmarkw",
    ]


def test_ignored_words_keep_their_ids():
    tokenizer = WordTokenizer(["red", "rare", "blue"], specials=["<UNK>"], ignored=["rare"])
    assert tokenizer(["red rare blue new"]).numpy().tolist() == [[1, 0, 3, 0]]
    assert tokenizer.encode("rare blue") == [0, 3]
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(tokenizer))
    assert again(["red rare blue"]).numpy().tolist() == [[1, 0, 3]]


def test_rules_survive_saving_and_unknown_ones_are_refused():
    tokenizer = WordTokenizer(["v-neck"], rules="treebank", marks=True)
    again = WordTokenizer.from_config(tokenizer.get_config())
    assert again(["V-neck"]).numpy().tolist() == [[4]]
    with pytest.raises(UsageError, match="strip_punct"):
        WordTokenizer([], rules="bpe")
    with pytest.raises(UsageError, match="treebank"):
        tokenize("a", rules="bpe")


def test_an_empty_vocabulary_works():
    assert WordTokenizer([], specials=["<UNK>"])(["any word"]).numpy().tolist() == [[0, 0]]
