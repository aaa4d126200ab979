"""Words in, ids out: FashionIQ's word tokeniser in plain Python and inside the graph, its vocabularies and its caption forms.

The rules (FashionIQ 2020 entry, and google/tirg without the spelling table): characters outside ASCII are dropped, the rest is
lower-cased, punctuation is deleted ("v-neck" becomes "vneck"), the text is split at white space, and each word passes once
through a table of spelling corrections. Under the other rules, `treebank`, punctuation becomes words of its own and "v-neck"
stays one word (the Penn Treebank's rules as NLTK has them, which VAL uses for FashionIQ and Shoes).
"""

from __future__ import annotations

import random
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets.captions import MARKS, spell_out_marks

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
LEGACY_SPECIALS = ("[PAD]", "[CLS]", "[SEP]")

_PUNCTUATION = str.maketrans("", "", string.punctuation)
# The markers travel through the cleaning as characters that cannot come from a text, because non-ASCII ones have been dropped.
_MARKERS = {"[CLS]": "\ue000", "[SEP]": "\ue001"}
_NOT_ASCII = r"[^\x00-\x7f]+"
_PUNCTUATION_PATTERN = r"[!-/:-@\[-`{-~]+"
# Python's str.split() takes \x1c..\x1f for white space, TensorFlow's does not.
_SEPARATORS_PATTERN = r"[\x1c-\x1f]"

RULES = ("strip_punct", "treebank")
_BLANKS = " \t\n\r\v\f"
_SPACES_PATTERN = "[\x1c-\x1f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ue000\ue001]"

# In this order, on a lower-case text without outer blanks; written so that Python and RE2 read them alike. `{1}` stands for a group
# of the match, which the two write differently in replacements.
_TREEBANK_BEFORE = (
    ("([«“‘„]|`+)", " {1} "),
    (r'^"', " `` "),
    (r"([ (\[{<])(\"|'')", "{1} `` "),
    (r"'([a-ce-lo-ru-z0-9_])\b", "' {1}"),
    (r"([^.])(\.)([\])}>\"'»”’ ]*)\s*$", "{1} {2} {3} "),
    (r"([:,])([^0-9])", " {1} {2}"),
    (r"([:,])$", " {1} "),
    (r"\.{2,}", " {0} "),
    (r"[;@#$%&]", " {0} "),
    (r"[?!]", " {0} "),
    (r"([^'])' ", "{1} ' "),
    (r"[*]", " {0} "),
    (r"[\]\[(){}<>]", " {0} "),
    (r"--", " -- "),
)
# On the same text with a blank at both ends.
_TREEBANK_AFTER = (
    ("[»”’]", " {0} "),
    (r"''", " '' "),
    (r'"', " '' "),
    (r"([^' ])('[smd]|') ", "{1} {2} "),
    (r"([^' ])('ll|'re|'ve|n't) ", "{1} {2} "),
    (r"\b(can)(not)\b", " {1} {2} "),
    (r"\b(d)('ye)\b", " {1} {2} "),
    (r"\b(gim|lem)(me)\b", " {1} {2} "),
    (r"\b(gon)(na)\b", " {1} {2} "),
    (r"\b(got)(ta)\b", " {1} {2} "),
    (r"\b(more)('n)\b", " {1} {2} "),
    (r"\b(wan)(na)\s", " {1} {2} "),
    (r" ('t)(is|was)\b", " {1} {2} "),
)

Spelling = Mapping[str, str] | str | None


def _replacement(text: str, group: str) -> str:
    for number in range(4):
        text = text.replace(f"{{{number}}}", group.format(number))
    return text


_TREEBANK_PYTHON = [
    [(re.compile(pattern, re.ASCII), _replacement(text, r"\g<{}>")) for pattern, text in rules]
    for rules in (_TREEBANK_BEFORE, _TREEBANK_AFTER)
]
_TREEBANK_GRAPH = [[(pattern, _replacement(text, "\\{}")) for pattern, text in rules] for rules in (_TREEBANK_BEFORE, _TREEBANK_AFTER)]


def _treebank(text: str) -> list[str]:
    before, after = _TREEBANK_PYTHON
    text = text.strip(_BLANKS)
    for pattern, replacement in before:
        text = pattern.sub(replacement, text)
    text = f" {text} "
    for pattern, replacement in after:
        text = pattern.sub(replacement, text)
    text = text.strip(_BLANKS)
    return re.split(f"[{_BLANKS}]+", text) if text else []


def load_spelling(spelling: Spelling) -> dict[str, str]:
    """Table word -> replacement.

    Args:
        spelling: None (no corrections), "fashion_iq" (the 778 corrections of the FashionIQ 2020 entry), a mapping, or the path of
            a text file with `word TAB replacement` in each line.

    Raises:
        DataError: a line of the file has no tab, or is not UTF-8.
        UsageError: not a known name and no such file.
    """
    if spelling is None:
        return {}
    if isinstance(spelling, Mapping):
        return {str(word): str(replacement) for word, replacement in spelling.items()}
    if spelling == "fashion_iq":
        name, text = spelling, resources.files("tf_fashion.inputs").joinpath("data/spell_corrections.tsv").read_text("ascii")
    else:
        name = str(spelling)
        if not Path(name).is_file():
            raise UsageError(f"spelling={name!r}: expected None, 'fashion_iq', a dictionary, or the path of a file; no such file.")
        try:
            text = Path(name).read_text("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{name}: expected UTF-8 text, found other bytes at offset {error.start}.") from None
    table: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        word, tab, replacement = line.partition("\t")
        if not tab or not word or not replacement:
            raise DataError(f"{name}, line {number}: expected 'word TAB replacement', found {line!r}.")
        table.setdefault(word, replacement)
    return table


def tokenize(text: str, spelling: Spelling = None, markers: bool = False, rules: str = "strip_punct", marks: bool = False) -> list[str]:
    """Splits a text into words by the rules above; the Python twin of `WordTokenizer`.

    Args:
        text: Any string.
        spelling: See `load_spelling`; a replacement that holds a blank stays one word.
        markers: Whether `[CLS]` and `[SEP]` in the text are kept as words of their own (else they are treated as any text).
        rules: `strip_punct` or `treebank`.
        marks: Whether `spell_out_marks` is applied first.

    Raises:
        UsageError: unknown rules.
    """
    if rules not in RULES:
        raise UsageError(f"tokenize(rules=...): expected {' or '.join(map(repr, RULES))}, found {rules!r}.")
    table = spelling if isinstance(spelling, dict) else load_spelling(spelling)
    if rules == "treebank":
        text = re.sub(_SPACES_PATTERN, " ", text.encode("utf-8", "ignore").decode("utf-8"))
    else:
        text = text.encode("ascii", "ignore").decode("ascii")
    if marks:
        text = spell_out_marks(text)
    if markers:
        for marker, character in _MARKERS.items():
            text = text.replace(marker, f" {character} ")
    text = text.lower()
    words = _treebank(text) if rules == "treebank" else text.translate(_PUNCTUATION).split()
    back = {character: marker for marker, character in _MARKERS.items()}
    return [back.get(word) or table.get(word, word) for word in words]


def build_vocabulary(
    captions: Iterable[str],
    order: str = "first_seen",
    min_count: int = 1,
    spelling: Spelling = None,
    rules: str = "strip_punct",
    marks: bool = False,
) -> list[str]:
    """The distinct words of `captions`, without special ones.

    Args:
        captions: Single captions (not joined pairs).
        order: `first_seen` (FashionIQ 2020, RTIC) or `alphabetical` (google/tirg).
        min_count: Words seen less often are left out (and become unknown).
        spelling: See `load_spelling`.
        rules, marks: See `tokenize`.

    Raises:
        UsageError: unknown `order` or `rules`.
    """
    if order not in ("first_seen", "alphabetical"):
        raise UsageError(f"build_vocabulary(order=...): expected 'first_seen' or 'alphabetical', found {order!r}.")
    table = load_spelling(spelling)
    counts = Counter(word for caption in captions for word in tokenize(caption, table, rules=rules, marks=marks))
    words = [word for word, count in counts.items() if count >= min_count]
    return sorted(words) if order == "alphabetical" else words


# --- caption forms ----------------------------------------------------------------------------------------------------


def _clip4cir(first: str, second: str) -> str:
    return f"{first.strip('.?, ').capitalize()} and {second.strip('.?, ')}"


_STYLES: dict[str, Callable[[str, str], str]] = {
    "fiq2020": lambda a, b: f"[CLS] {a.strip()} [SEP] {b.strip()}",
    "rtic": lambda a, b: f"{a.strip()} [SEP] {b.strip()}",
    "and": lambda a, b: f"{a.strip()} and {b.strip()}",
    "starter_kit": lambda a, b: f"{a.strip()} <and> {b.strip()}",
    "clip4cir": _clip4cir,
}
_FRAMES = {"fiq2020": ("[CLS] ", " [SEP] "), "rtic": ("", " [SEP] "), "and": ("", " and "), "starter_kit": ("", " <and> ")}


def caption_styles() -> list[str]:
    """Names that `join_captions` knows."""
    return sorted(_STYLES)


def join_captions(captions: Sequence[str], style: str = "fiq2020") -> str:
    """Makes one text of the captions of a pair.

    Args:
        captions: One caption or two; one that is empty stays an empty place in the form, as in the original programs.
        style: `fiq2020` "[CLS] a [SEP] b"; `rtic` "a [SEP] b"; `and` "a and b" (CoVR); `starter_kit` "a <and> b";
            `clip4cir` "A and b" (ends stripped of ".?, ", first one capitalised; with one caption only "A").

    Raises:
        UsageError: unknown style.
        DataError: not one or two captions.
    """
    if style not in _STYLES:
        raise UsageError(f"Unknown caption style {style!r}. Known: {', '.join(caption_styles())}.")
    if isinstance(captions, str) or len(captions) not in (1, 2):
        raise DataError(f"Expected a list of one or two captions, found {captions!r}.")
    if len(captions) == 2:
        return _STYLES[style](captions[0], captions[1])
    if style == "clip4cir":
        return captions[0].strip(".?, ").capitalize()
    return _FRAMES[style][0] + captions[0].strip()


def join_caption_tensor(captions: tf.Tensor, style: str = "fiq2020", seed: tf.Tensor | None = None) -> tf.Tensor:
    """In-graph `join_captions` for string (B, 2) -> (B,), with the order of each pair drawn anew if a seed is given.

    Args:
        captions: string (B, 2).
        style: All but `clip4cir`.
        seed: None for the given order, or int32 (2,) for a random order of each row (`tf.random.stateless_uniform`).
    """
    if style not in _FRAMES:
        raise UsageError(f"Caption style {style!r} has no in-graph form. Known: {', '.join(sorted(_FRAMES))}.")
    captions = tf.strings.strip(captions)
    first, second = captions[:, 0], captions[:, 1]
    if seed is not None:
        swap = tf.random.stateless_uniform(tf.shape(first), seed) < 0.5
        first, second = tf.where(swap, second, first), tf.where(swap, first, second)
    before, between = _FRAMES[style]
    return tf.strings.join([before, first, between, second])


def legacy_caption_order(counts: Sequence[int], seed: int = 1234) -> list[np.ndarray]:
    """The FashionIQ 2020 entry's fixed caption order: one stream of Python's `random` over several caption files.

    Args:
        counts: Number of pairs in each file, in the order in which they were read (training process: train dress, toptee,
            shirt, then val; score export: val, then test).
        seed: Seed of the stream.

    Returns:
        For each file a uint8 array, 1 where the second caption comes first.
    """
    generator = random.Random(seed)
    result = []
    for count in counts:
        swapped = np.zeros(count, np.uint8)
        for row in range(count):
            pair = [0, 1]
            generator.shuffle(pair)
            swapped[row] = pair[0]
        result.append(swapped)
    return result


# --- the layer --------------------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("tf_fashion")
class WordTokenizer(keras.layers.Layer):
    """Texts to padded word ids, in-graph: the same in tf.data, eagerly, and in an exported model.

    Row r of the result holds the ids of text r, then zeros. Give whole batches: one call on 1,000 texts is far cheaper than 1,000
    calls. `[CLS]` and `[SEP]` in a text are words of their own with ids of their own. Id 0 is padding; an empty text is one
    `[PAD]`.

    Args:
        words: Vocabulary without the special words, for instance from `build_vocabulary`.
        spelling: None, "fashion_iq", a mapping, or a path (see `load_spelling`); the table itself is kept in the configuration.
        legacy_markers: The original's behaviour: specials `[PAD]`, `[CLS]`, `[SEP]` only, and the markers in a text become
            unknown words "cls" and "sep", so that padding, markers and unknown words all have id 0.
        specials: Names of the first ids; default `[PAD]`, `[UNK]`, `[CLS]`, `[SEP]`. An unknown word gets the id of "[UNK]" or
            "<UNK>", or 0 if there is none.
        max_length: Longer texts lose their end.
        pad_to_max_length: Makes every result (B, max_length) rather than as wide as the longest text.
        rules, marks: See `tokenize`.
        ignored: Words of the vocabulary that count as unknown although they keep their ids (VAL's removal of rare words).

    Input: strings (B,), a tensor, array or list. Output: int32 (B, L), L at least 1.
    """

    def __init__(
        self,
        words: Sequence[str],
        spelling: Spelling = None,
        legacy_markers: bool = False,
        specials: Sequence[str] | None = None,
        max_length: int | None = None,
        pad_to_max_length: bool = False,
        rules: str = "strip_punct",
        marks: bool = False,
        ignored: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.words = [str(word) for word in words]
        self.spelling = load_spelling(spelling)
        self.legacy_markers = bool(legacy_markers)
        self.specials = [str(s) for s in (specials or (LEGACY_SPECIALS if legacy_markers else SPECIALS))]
        self.max_length = max_length
        self.pad_to_max_length = bool(pad_to_max_length)
        self.rules = rules
        self.marks = bool(marks)
        self.ignored = [str(word) for word in ignored]
        if rules not in RULES:
            raise UsageError(f"WordTokenizer(rules=...): expected {' or '.join(map(repr, RULES))}, found {rules!r}.")
        if max_length is not None and max_length < 1:
            raise UsageError(f"WordTokenizer(max_length=...): expected None or a positive whole number, found {max_length!r}.")
        if pad_to_max_length and max_length is None:
            raise UsageError("WordTokenizer(pad_to_max_length=True) needs max_length.")
        twice = [word for word, count in Counter(self.vocabulary).items() if count > 1]
        if twice:
            raise UsageError(f"WordTokenizer: the vocabulary names these words more than once: {', '.join(map(repr, twice[:5]))}.")
        self._markers = {} if legacy_markers else {m: c for m, c in _MARKERS.items() if m in self.specials}
        self.supports_jit = False
        self._convert_input_args = False
        self._allow_non_tensor_positional_args = True
        self._make_table()

    @property
    def vocabulary(self) -> list[str]:
        """All words in the order of their ids, special ones first."""
        return [*self.specials, *self.words]

    @property
    def unknown_id(self) -> int:
        """Id of a word outside the vocabulary."""
        return next((i for i, special in enumerate(self.specials) if special in ("[UNK]", "<UNK>")), 0)

    def _make_table(self) -> None:
        ids = {word: number for number, word in enumerate(self.vocabulary)}
        # Specials are reachable through their marker character only: a text cannot spell "[PAD]".
        direct = {word: number for word, number in ids.items() if number >= len(self.specials)}
        direct.update({character: ids[marker] for marker, character in self._markers.items()})
        direct.update(dict.fromkeys(self.ignored, self.unknown_id))
        # Spelling and vocabulary in one table: one look-up per word.
        direct.update({wrong: direct.get(right, self.unknown_id) for wrong, right in self.spelling.items()})
        # No word is empty; a table must not be.
        direct.setdefault("", self.unknown_id)
        with tf.init_scope():
            keys = tf.constant(list(direct), tf.string, shape=(len(direct),))
            values = tf.constant(list(direct.values()), tf.int32, shape=(len(direct),))
            self._table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), self.unknown_id)

    def ragged(self, texts: Any) -> tf.RaggedTensor:
        """Ids without padding: int32 ragged (B, None); an empty text has an empty row."""
        texts = tf.convert_to_tensor(texts, tf.string)
        # Invalid UTF-8 would slip past the patterns.
        clean = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="ignore", replace_control_characters=False)
        treebank = self.rules == "treebank"
        clean = tf.strings.regex_replace(clean, _SPACES_PATTERN if treebank else _NOT_ASCII, " " if treebank else "")
        if self.marks:
            clean = tf.strings.strip(clean)
            for mark, word in MARKS.items():
                clean = tf.strings.regex_replace(clean, re.escape(mark), word)
        for marker, character in self._markers.items():
            clean = tf.strings.regex_replace(clean, rf"\[{marker[1:-1]}\]", f" {character} ")
        if treebank:
            before, after = _TREEBANK_GRAPH
            clean = tf.strings.strip(tf.strings.lower(clean, encoding="utf-8"))
            for pattern, replacement in before:
                clean = tf.strings.regex_replace(clean, pattern, replacement)
            clean = tf.strings.join([" ", clean, " "])
            for pattern, replacement in after:
                clean = tf.strings.regex_replace(clean, pattern, replacement)
        else:
            clean = tf.strings.regex_replace(tf.strings.lower(clean), _PUNCTUATION_PATTERN, "")
            clean = tf.strings.regex_replace(clean, _SEPARATORS_PATTERN, " ")
        split = tf.strings.split(clean)
        if self.max_length is not None:
            split = split[:, : self.max_length]
        return split.with_flat_values(self._table.lookup(split.flat_values))

    def call(self, texts: Any, return_lengths: bool = False) -> Any:
        """Ids int32 (B, L); with `return_lengths` also the number of words of each text, int32 (B,), before padding."""
        rows = self.ragged(texts)
        if self.pad_to_max_length:
            ids = rows.to_tensor(shape=(None, self.max_length))
        else:
            ids = rows.to_tensor()
            ids = tf.pad(ids, [[0, 0], [0, tf.maximum(1 - tf.shape(ids)[1], 0)]])
            ids = tf.ensure_shape(ids, (rows.shape[0], None))
        return (ids, tf.cast(rows.row_lengths(), tf.int32)) if return_lengths else ids

    def compute_output_spec(self, texts: Any, return_lengths: bool = False) -> Any:
        batch = texts.shape[0]
        ids = keras.KerasTensor((batch, self.max_length if self.pad_to_max_length else None), "int32")
        return (ids, keras.KerasTensor((batch,), "int32")) if return_lengths else ids

    def tokenize(self, text: str) -> list[str]:
        """The words of one text as this layer sees them (Python twin, for people and tests)."""
        return tokenize(text, self.spelling, bool(self._markers), self.rules, self.marks)

    def encode(self, text: str) -> list[int]:
        """Ids of one text without padding, in Python."""
        ids = {word: number for number, word in enumerate(self.vocabulary)}
        reachable = {*self.words, *self._markers}.difference(self.ignored)
        words = self.tokenize(text)[: self.max_length]
        return [ids[word] if word in reachable else self.unknown_id for word in words]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "words": self.words,
            "spelling": self.spelling or None,
            "legacy_markers": self.legacy_markers,
            "specials": self.specials,
            "max_length": self.max_length,
            "pad_to_max_length": self.pad_to_max_length,
            "rules": self.rules,
            "marks": self.marks,
            "ignored": self.ignored,
        }
