import gzip
import hashlib
import html
import json
import sys
import unicodedata

import ftfy
import keras
import numpy as np
import pytest
import regex
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.shared import shared
from tf_fashion.core.errors import DataError, MissingExtraError, UsageError
from tf_fashion.inputs.bpe import (
    END_OF_WORD,
    MARKERS,
    OPENAI_SHA256,
    BytePairs,
    CLIPTokenizer,
    byte_symbols,
    clean,
    learn_merges,
    read_merges,
    split_pattern,
)
from tf_fashion.inputs.unicode_graph import re2_pattern

CAPTIONS = [
    "is a longer black dress with lace sleeves",
    "is black and has no sleeves",
    "has longer sleeves and a lower neckline",
    "the dress is more colorful, it's a light blue",
    "is darker in color and has a naïve café print",
    "аaааа баба 100% cotton",
    "ΣΟΦΟΣ aaaaaaa aaa",
] * 2
HARD = [
    "",
    " \t\n",
    "donâ€™t â€œquoteâ€\x9d cafÃ© Ã  la mode Ã quel voilÃ ",
    "ÃƒÂ© Ã¢â‚¬â„¢ double",
    "one cafÃ© and one café",
    "don’t “quote” ‘s ʼs ﬁﬂﬃﬆŉ Ǆ",
    "ＦＵＬＬ　ｗｉｄｔｈ ﾊﾝｶｸ３",
    "&amp;amp; &lt;b&gt; &eacute;&EACUTE; &notit; &#39;s &#x2019;s &#0; &#x80; &#xD800; &#99999999999999999; &#59; &acE; &ampé &x",
    "<b>&eacute;</b>\n&eacute;",
    "&eacute;\n<b>",
    "\x1b[31mred\x1b[0m \x00\x08\x0b\x7f\ufeff\u200b\u200d\u2028\u2029\x85\x1c\r\n\r",
    "\x80\x93\x99 c1",
    "ΣΟΦΟΣ Σ Σ.Σ ΑΣ'Σ ΌΣ\u0301 İSTANBUL IĞDIR straße ǅ ﬀ K Å Ω",
    "e\u0301 a\u0323\u0302 q\u0307\u0323 \u1100\u1161\u11a8 \u0344 \u0958 \u2126 \u1e9b\u0323",
    "½ ² Ⅷ ٣ ১২ 12 ①",
    "中文 日本語 한국 हिन्दी ไทย 👩‍💻👗🇩🇪",
    "it'S 'Sx 'ſ ''ll 'LLo I'd we'RE 'vexed",
    "\u0345 a\u0345b \u00ad\u0378 \U0001f600 \ufffe \U0010ffff",
    "<|startoftext|>a<|EndOfText|> <start_of_text> <end_of_text><|ſtartoftext|>",
    "в‚¬ Р° â\u201a¬ ├® Ã\xa0 Â\xa0x Â£ вЂ™ ā€™ β€™",
    "\u00c0\u0080 \u00ed\u00a0\u00bd\u00ed\u00b2\u00a9 é€\n",
    "a" * 300,
    " ".join(["velvet"] * 75),
    " ".join(["velvet"] * 76),
]


@pytest.fixture(scope="module")
def rules():
    return learn_merges(CAPTIONS, 600)


@pytest.fixture(scope="module")
def tokenizer(rules):
    return CLIPTokenizer(rules)


def naive_pieces(text):
    """The steps of the original in its words."""
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    text = regex.sub(r"\s+", " ", text).strip().lower()
    pattern = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    return regex.findall(pattern, text, regex.IGNORECASE)


def naive_pairs(word, rules):
    """Symbols of a word by the definition: over and over the rule of the lowest rank, everywhere in the word."""
    symbols = [naive_symbol(byte) for byte in word.encode()]
    symbols[-1] += END_OF_WORD
    ranks = {tuple(rule.split()): rank for rank, rule in enumerate(rules)}
    while True:
        pairs = [pair for pair in zip(symbols, symbols[1:], strict=False) if pair in ranks]
        if not pairs:
            return symbols
        best = min(pairs, key=ranks.__getitem__)
        for position in range(len(symbols)):
            if tuple(symbols[position : position + 2]) == best:
                symbols[position : position + 2] = ["".join(best)]


def naive_symbol(byte):
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [other for other in range(256) if other not in printable]
    return chr(byte) if byte in printable else chr(256 + others.index(byte))


def naive_ids(text, rules, width=77):
    symbols = byte_symbols()
    vocabulary = [*symbols, *(s + END_OF_WORD for s in symbols), *(rule.replace(" ", "") for rule in rules), "start", "end"]
    index = {symbol: number for number, symbol in enumerate(vocabulary)}
    special = {"<|startoftext|>": ["start"], "<|endoftext|>": ["end"]}
    ids = [index[s] for piece in naive_pieces(text) for s in special.get(piece) or naive_pairs(piece, rules)]
    ids = [len(vocabulary) - 2, *ids[: width - 2], len(vocabulary) - 1]
    return ids + [0] * (width - len(ids))


def agree(tokenizer, texts):
    np.testing.assert_array_equal(tokenizer.encode_graph(texts).numpy(), tokenizer.encode(texts))


def test_symbols_of_bytes():
    symbols = byte_symbols()
    assert len(set(symbols)) == 256 and symbols[:3] == ["!", '"', "#"] and symbols[-1] == "Ń"
    assert BytePairs([]).encode(" ") == [symbols.index("Ġ") + 256]
    assert BytePairs([]).encode("a!") == [64, 256]


def test_python_follows_the_definition(rules, tokenizer):
    texts = [*HARD, *CAPTIONS]
    assert tokenizer.encode(texts).tolist() == [naive_ids(text, rules) for text in texts]
    assert tokenizer.vocabulary_size == 600 == tokenizer.end_id + 1 == tokenizer.start_id + 2
    assert tokenizer.pieces("It's 1960's") == ["it", "'s", "1", "9", "6", "0", "'s"]


def test_graph_equals_python_on_hard_texts(tokenizer):
    agree(tokenizer, HARD)
    agree(tokenizer, CAPTIONS)
    agree(tokenizer, ["don’t"])
    agree(tokenizer, ["lone \ud800 pair \ud83d\udc57"])
    assert tokenizer.encode_graph([]).shape == (0, 77)
    broken = [b"\xff\xfe", b"caf\xe9 dress", b"\xed\xa0\x80\xc3", b"\xf0\x9f\x91", b"\xc3\xa9"]
    agree(tokenizer, broken)


def test_every_character_of_the_plane(tokenizer):
    characters = [chr(point) for point in range(0x80, 0x3000, 2)]
    agree(tokenizer, [f"a{c}b{c}Σ {c}&{c};" for c in characters])


@st.composite
def wrongly_decoded(draw):
    """Texts that were UTF-8 and have been read in another encoding, once or more, in part or as a whole."""
    words = st.sampled_from(["café", "don’t", "naïve", "“a”", "à la", "日本", "👗", "Москва", "Ελλάδα", "x²", "€5", "–", "dress", "ß"])
    encodings = st.sampled_from([*ftfy.chardata.CHARMAP_ENCODINGS, "cp1252"])
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        text = " ".join(draw(st.lists(words, min_size=1, max_size=3)))
        for _ in range(draw(st.integers(0, 2))):
            text = text.encode().decode(draw(encodings), "replace")
        parts.append(text.replace("\xa0", " ") if draw(st.booleans()) else text)
    return draw(st.sampled_from(["", " ", "\n"])).join(parts)


SUSPECTS = "".join(ftfy.badness.MOJIBAKE_CATEGORIES.values()) + "aZ \n"
TEXTS = st.one_of(
    st.text(max_size=12),
    st.text(alphabet=st.characters(max_codepoint=0x530), max_size=12),
    st.text(alphabet=SUSPECTS, max_size=10),
    st.text(alphabet="AΣσς\u0301\u0323\u0345\xad'. İıſ\u1100\u1161\u11a8가", max_size=10),
    st.text(alphabet="\xc0\xc2\xc3\xc5\xe0\xe2\xed\xf0\x80\x85\xa0\xbf\x1a ?\na", max_size=10),
    st.lists(st.sampled_from(["&", "&amp;", "&lt", "&#", "x41;", "39;", "&eacute", ";", "<", "é", "not", "in"]), max_size=6).map(
        "".join
    ),
    wrongly_decoded(),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, max_size=20))
def test_graph_equals_python_on_any_text(tokenizer, texts):
    agree(tokenizer, texts)


def test_truncation_and_markers(rules):
    long, fits = " ".join(["a"] * 40), " ".join(["a"] * 6)
    keep = CLIPTokenizer(rules, context_length=8)
    original = CLIPTokenizer(rules, context_length=8, truncation="original", markers="fashionklip")
    a = keep.encode(["a"])[0, 1]
    assert keep.encode([long, fits]).tolist() == [[598, *[a] * 6, 599]] * 2
    assert original.encode([long, fits]).tolist() == [[598, *[a] * 7], [598, *[a] * 6, 599]]
    spelled = ["<start_of_text> <END_OF_TEXT>", "<|startoftext|>"]
    assert original.encode(spelled)[0].tolist() == [598, 598, 599, 599, 0, 0, 0, 0]
    assert keep.encode(spelled)[1].tolist() == [598, 598, 599, 0, 0, 0, 0, 0]
    for layer in (keep, original):
        agree(layer, [long, fits, *spelled, "", "a " * 5])
    assert CLIPTokenizer(rules, context_length=2).encode(["", "a"]).tolist() == [[598, 599]] * 2


def test_long_words_stay_cheap(tokenizer):
    agree(tokenizer, ["a" * 5000, "ab" * 1000, "&#" + "9" * 5000 + ";", "é" * 2000])


def test_pipelines_of_any_batch_size(tokenizer):
    texts = [f"{text} {number}" for number, text in enumerate(CAPTIONS)]
    batches = tf.data.Dataset.from_tensor_slices(texts).batch(5).map(tokenizer)
    assert batches.element_spec.shape == (None, 77) and batches.element_spec.dtype == tf.int32
    np.testing.assert_array_equal(np.concatenate(list(batches)), tokenizer.encode(texts))
    for size in (1, 2, 14):
        agree(tokenizer, texts[:size])


def test_saved_with_a_model_and_exported(tmp_path, rules, monkeypatch):
    inputs = keras.Input((), dtype="string")
    layer = CLIPTokenizer(rules, 12, "original", "fashionklip", sha256="ab")
    model = keras.Model(inputs, layer(inputs))
    assert model.output.shape == (None, 12) and model.output.dtype == "int32"
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras").layers[1]
    assert again.get_config() == layer.get_config() and again.merges == rules and again.sha256 == "ab"
    np.testing.assert_array_equal(again.encode(HARD), layer.encode(HARD))
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", lambda texts: {"ids": layer(texts)}, input_signature=[tf.TensorSpec((None,), tf.string)])
    archive.write_out(str(tmp_path / "export"), verbose=False)
    expected = layer.encode(HARD)
    for package in ("ftfy", "regex"):
        monkeypatch.setitem(sys.modules, package, None)
    served = tf.saved_model.load(str(tmp_path / "export")).serve(tf.constant(HARD))["ids"]
    np.testing.assert_array_equal(served, expected)


def test_learned_rules_are_the_most_frequent_pairs():
    assert learn_merges(
        ["low low low low low lower lower newest newest newest newest newest newest widest widest widest"], 514 + 5
    ) == [
        "e s",
        "es t</w>",
        "l o",
        "e w",
        "ew est</w>",
    ]
    assert learn_merges(CAPTIONS, 590) == learn_merges(iter(CAPTIONS), 590) == learn_merges(CAPTIONS, 600)[: 590 - 514]
    assert learn_merges(["ab"], 1000) == [] and learn_merges(["ab"], 1000, min_count=1) == ["a b</w>"]
    assert learn_merges(["aaaa aaaa"], 1000) == ["a a", "a a</w>", "aa aa</w>"]
    with pytest.raises(UsageError, match="514"):
        learn_merges(CAPTIONS, 513)


def test_files_round_trip(tmp_path, rules, tokenizer):
    for name in ("rules.txt", "rules.txt.gz"):
        tokenizer.save(tmp_path / name)
        first = (tmp_path / name).read_bytes()
        tokenizer.save(tmp_path / name)
        assert (tmp_path / name).read_bytes() == first
        again = CLIPTokenizer.from_file(tmp_path / name, context_length=9)
        assert again.merges == rules and again.context_length == 9
        assert again.sha256 == hashlib.sha256(first).hexdigest() and tokenizer.sha256 is None
        assert CLIPTokenizer.from_file(tmp_path / name, merges=3).vocabulary_size == 517
        with pytest.raises(DataError, match=r"at least 9,999 merge rules, found 86"):
            CLIPTokenizer.from_file(tmp_path / name, merges=9999)


def test_bad_files(tmp_path):
    def fails(name, content, message):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            CLIPTokenizer.from_file(tmp_path / name)

    good = gzip.compress(b"#version: 0.2\na b\n" * 50)
    with pytest.raises(DataError, match=r"no such file.*github.com/openai/CLIP"):
        CLIPTokenizer.from_file(tmp_path / "none.txt.gz")
    fails("page.txt.gz", b"<html>not found</html>", "expected a gzip file")
    fails("cut.txt.gz", good[:-12], "damaged")
    fails("flipped.txt.gz", good[:20] + bytes([good[20] ^ 255]) + good[21:], "damaged")
    fails("bytes.txt", b"#version\n\xff\xfe", "damaged")
    fails("three.txt", b"#version\na b\na b c\n", "line 3")
    fails("empty.txt", b"", "line 1")
    fails("unknown.txt", b"#version\nab c\n", "no byte and no rule makes the symbol 'ab'")
    (tmp_path / "plain.txt").write_bytes(b"a b\r\nab c\r\n")
    assert read_merges(tmp_path / "plain.txt")[0] == ["a b", "ab c"]


def test_no_rules():
    layer = CLIPTokenizer([])
    assert layer.vocabulary_size == 514 and layer.merges == []
    assert layer.encode(["ab"])[0, :5].tolist() == [512, 64, 65 + 256, 513, 0]


def test_bad_arguments(rules, tokenizer):
    for bad in ({"truncation": "end"}, {"markers": "openclip"}, {"context_length": 1}, {"context_length": 7.0}):
        with pytest.raises(UsageError, match=next(iter(bad))):
            CLIPTokenizer(rules, **bad)
    with pytest.raises(UsageError, match="from_file"):
        CLIPTokenizer("bpe_simple_vocab_16e6.txt.gz")
    with pytest.raises(UsageError, match="Merge rule 1"):
        CLIPTokenizer(["a b", "a b c"])
    with pytest.raises(UsageError, match="single text"):
        tokenizer.encode("a dress")
    with pytest.raises(UsageError, match="found None"):
        tokenizer.encode(["a dress", None])
    for shape in ("a dress", [["a dress"]]):
        with pytest.raises(UsageError, match="expected a vector"):
            tokenizer.encode_graph(shape)


def test_missing_extra_is_named(monkeypatch, rules):
    for package in ("regex", "ftfy"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingExtraError, match=rf"`{package}`.*tf-fashion\[clip\]"):
            CLIPTokenizer(rules).encode(["a dress"])
        with pytest.raises(MissingExtraError, match=rf"`{package}`"):
            CLIPTokenizer(rules).encode_graph(["a dress"])


def test_rules_that_make_the_same_symbol_twice():
    rules = ["a b", "b c", "ab c", "a bc", "c c", "c cc", "cc c"]
    pairs = BytePairs(rules)
    symbols = {number: symbol for symbol, number in pairs.ids.items()}
    for word in ("abc", "xabcabcc", "ccccc", "cccccccx"):
        assert [symbols[number] for number in pairs.encode(word)] == naive_pairs(word, rules)
    agree(CLIPTokenizer(rules), ["abcx xabcabcc ccccc cccccccx cccx"])


def test_patterns_for_re2():
    import re

    verbose = re.compile(r"[a b#] \s  # says ] nothing" + "\n | ^[é]", re.VERBOSE)
    rewritten = re2_pattern(verbose)
    assert rewritten.startswith("[a b#][") and rewritten.endswith("|^[é]") and "says" not in rewritten
    for text in ("#\u3000", "b\x1c", "é", "xé", "]"):
        found = tf.strings.regex_full_match([text], f"(?s:.*)(?:{rewritten})(?s:.*)").numpy()[0]
        assert found == bool(verbose.search(text)), text


def test_clean_text():
    assert clean("  É&amp;nbsp;ＣＬＩＰ\u3000 ’S ") == "é clip 's"
    assert unicodedata.is_normalized("NFC", clean("e\u0301"))
    assert MARKERS["openai"][0] in split_pattern(MARKERS["openai"]).replace("\\", "")


def test_the_published_vocabulary():
    path = shared("weights/bpe_simple_vocab_16e6.txt.gz")
    captions = json.loads(next(shared("data/fashion_iq_text").rglob("cap*dress*val*.json")).read_text())
    captions = [caption for row in captions[::12] for caption in row["captions"]]
    tokenizer = CLIPTokenizer.from_file(path)
    assert tokenizer.sha256 == OPENAI_SHA256 and tokenizer.vocabulary_size == 49408 and tokenizer.start_id == 49406
    assert tokenizer.encode(["a photo of "])[0, :6].tolist() == [49406, 320, 1125, 539, 49407, 0]
    agree(tokenizer, [*captions, *HARD])
