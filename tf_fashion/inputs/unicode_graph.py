"""The repair of texts (ftfy, HTML entities, NFC, lower case) inside a graph, of core TensorFlow operations alone.

Tables and patterns are taken from the installed `ftfy`, `html`, `unicodedata` and Python's `str` when the graph is built, and
become part of it: a saved graph needs none of them. Strings are rows of UTF-8; matches of a pattern are set off with the byte 0xFF,
which UTF-8 never has, so that no text can be mistaken for a mark.
"""

from __future__ import annotations

import functools
import html
import html.entities
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from tf_fashion.core.errors import UsageError

MARK = b"\xff"
_MARKED = b"\xff\\0\xff"
_BITS = 21  # of a code point
_NOTHING, _ITSELF = -1, -2
_REPLACEMENT = 0xFFFD
_WHOLE = 1 << 30  # bytes; more than any rest of a string
_ACTIVE, _WAITING, _DONE = 0, 1, 2

_CONTINUATION = r"[\x80-\xbf]"
# Bytes written as the characters U+0000..U+00FF: UTF-8, and what ftfy takes for it besides (Java's zero, pairs of surrogates).
_UTF8 = "|".join(
    [
        r"[\x00-\x7f]",
        r"\xc0\x80",
        rf"[\xc2-\xdf]{_CONTINUATION}",
        rf"\xe0[\xa0-\xbf]{_CONTINUATION}",
        rf"[\xe1-\xec\xee\xef]{_CONTINUATION}{{2}}",
        rf"\xed[\x80-\x9f]{_CONTINUATION}",
        rf"\xed[\xa0-\xaf]{_CONTINUATION}\xed[\xb0-\xbf]{_CONTINUATION}",
        rf"\xf0[\x90-\xbf]{_CONTINUATION}{{2}}",
        rf"[\xf1-\xf3]{_CONTINUATION}{{3}}",
        rf"\xf4[\x80-\x8f]{_CONTINUATION}{{2}}",
    ]
)


# For rare branches: as a function of their own their operations do not even have to be passed over when they are not taken.
_apart = tf.function(autograph=False, input_signature=[tf.TensorSpec([None], tf.string)], experimental_attributes={"_noinline": True})


@functools.cache
def _assigned() -> tuple[str, ...]:
    """Every character that Python's Unicode version knows, without surrogates."""
    return tuple(c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Co", "Cs"))


def character_class(characters: Iterable[str]) -> str:
    """The inside of a bracket expression for these characters, in RE2's spelling."""
    ranges: list[list[int]] = []
    for point in sorted(map(ord, characters)):
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return "".join(rf"\x{{{first:x}}}-\x{{{last:x}}}" for first, last in ranges)


@functools.cache
def _python_classes() -> dict[str, str]:
    characters = _assigned()
    return {
        r"\s": character_class(c for c in characters if c.isspace()),
        r"\w": character_class(c for c in characters if c.isalnum() or c == "_"),
        r"\d": character_class(c for c in characters if unicodedata.category(c) == "Nd"),
    }


def re2_pattern(pattern: re.Pattern[str]) -> str:
    """Rewrites a pattern of `re` for RE2: no verbose layout, and the classes of Python's Unicode version spelled out.

    Patterns with more than characters, classes, groups, repetitions and `^` are not meant.
    """
    verbose = bool(pattern.flags & re.VERBOSE)
    result, inside, comment = [], False, False
    for token in re.findall(r"\\.|.", pattern.pattern, re.DOTALL):
        if comment:
            comment = token != "\n"
        elif token in _python_classes():
            spelled = _python_classes()[token]
            result.append(spelled if inside else f"[{spelled}]")
        elif inside:
            inside = token != "]"
            result.append(token)
        elif verbose and token == "#":
            comment = True
        elif not (verbose and token in " \t\n\r\f\v"):
            inside = token == "["
            result.append(token)
    return "".join(result)


class _Composition(NamedTuple):
    decompositions: dict[str, str]
    classes: dict[int, int]
    pairs: dict[int, int]
    seconds: dict[int, int]
    involved: str


@functools.cache
def _composition() -> _Composition:
    decompositions = {c: unicodedata.normalize("NFD", c) for c in _assigned() if not unicodedata.is_normalized("NFD", c)}
    classes = {ord(c): unicodedata.combining(c) for c in _assigned() if unicodedata.combining(c)}
    pairs = {}
    for character, parts in decompositions.items():
        if unicodedata.normalize("NFC", parts) == character:
            first, second = unicodedata.normalize("NFC", parts[:-1]), parts[-1]
            if len(first) == 1:
                pairs[ord(first) << _BITS | ord(second)] = ord(character)
    seconds = {pair & ((1 << _BITS) - 1) for pair in pairs}
    changed = {ord(c) for c in decompositions if not unicodedata.is_normalized("NFC", c)}
    involved = character_class(map(chr, {*classes, *seconds, *changed}))
    return _Composition(decompositions, classes, pairs, dict.fromkeys(seconds, 1), involved)


@functools.cache
def _casing() -> tuple[dict[str, str], dict[int, int]]:
    """Lower-case letters, and the characters that `str.lower` looks over (1) or at (2) for the form of a final sigma."""
    characters = [c for c in _assigned() if c != "\n"]
    lower = {c: c.lower() for c in characters if c.lower() != c}

    def make_final(before: str) -> list[bool]:
        return [line.endswith("ς") for line in "\n".join(f"{before}{c}Σ" for c in characters).lower().split("\n")]

    cased = make_final("")
    kinds = {}
    for character, alone, after_letter in zip(characters, cased, make_final("a"), strict=True):
        if after_letter:
            kinds[ord(character)] = 2 if alone else 1
    return lower, kinds


def _string_table(entries: Mapping[str, str], default: bytes) -> tf.lookup.StaticHashTable:
    with tf.init_scope():
        keys = tf.constant([key.encode() for key in entries], tf.string)
        values = tf.constant([value.encode() for value in entries.values()], tf.string)
        return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), default)


def number_table(entries: Mapping[int, int], default: int) -> tf.lookup.StaticHashTable:
    """int64 -> int64."""
    with tf.init_scope():
        keys = tf.constant(list(entries), tf.int64)
        values = tf.constant(list(entries.values()), tf.int64)
        return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), default)


def pick(values: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """`tf.boolean_mask` for vectors, in a tenth of the operations."""
    return tf.gather(values, tf.where(mask)[:, 0])


def split_marked(texts: tf.Tensor, pattern: str, rewrite: bytes = _MARKED) -> tf.RaggedTensor:
    """Texts (n,) cut at the matches of a pattern: ragged (n, None), every second entry of a row a match."""
    return tf.strings.split(tf.strings.regex_replace(texts, pattern, rewrite), sep=MARK)


def odd_entries(pieces: tf.RaggedTensor) -> tf.Tensor:
    """Which of the flat entries of `split_marked` are matches, bool."""
    return tf.ragged.range(pieces.row_lengths()).flat_values % 2 == 1


def _join(pieces: tf.RaggedTensor) -> tf.Tensor:
    return tf.strings.unsorted_segment_join(pieces.flat_values, pieces.value_rowids(), pieces.nrows())


def on_rows(texts: tf.Tensor, mask: tf.Tensor, function: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """Replaces the rows in `mask` by `function` of them, which runs only if there are any."""

    def some() -> tf.Tensor:
        return tf.tensor_scatter_nd_update(texts, tf.where(mask), function(pick(texts, mask)))

    return tf.cond(tf.reduce_any(mask), some, lambda: texts)


def _replace(texts: tf.Tensor, pattern: str, function: Callable[[tf.Tensor], tf.Tensor], rewrite: bytes = _MARKED) -> tf.Tensor:
    pieces = split_marked(texts, pattern, rewrite)
    flat = on_rows(pieces.flat_values, odd_entries(pieces), function)
    return _join(pieces.with_flat_values(flat))


def _contains(texts: tf.Tensor, pattern: str) -> tf.Tensor:
    return tf.strings.regex_full_match(texts, f"(?s:.*)(?:{pattern})(?s:.*)")


def _code_points(texts: tf.Tensor) -> tf.RaggedTensor:
    points = tf.strings.unicode_decode(texts, "UTF-8", replace_control_characters=False)
    return points.with_flat_values(tf.cast(points.flat_values, tf.int64))


def _shifted(values: tf.Tensor, first: int) -> tf.Tensor:
    """Each entry's predecessor."""
    return tf.concat([[tf.cast(first, values.dtype)], values[:-1]], 0)


def _encode(points: tf.RaggedTensor) -> tf.Tensor:
    return tf.strings.unicode_encode(points.with_flat_values(tf.cast(points.flat_values, tf.int32)), "UTF-8")


def _fixed_point(texts: tf.Tensor, function: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    def step(texts: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        new = function(texts)
        return new, tf.reduce_any(new != texts)

    return tf.while_loop(lambda _, changed: changed, step, [texts, tf.constant(True)])[0]


class TextRepair(tf.Module):
    """`html.unescape(html.unescape(ftfy.fix_text(text))).lower()` for rows of texts, in-graph.

    Equal to the Python of the installed versions for every text that is UTF-8, without bounds on length or depth of repair. (A
    line longer than a million characters is repaired as a whole; ftfy cuts it.)

    Args:
        ftfy: The module; its tables and patterns become part of the graph.

    Raises:
        UsageError: a version of ftfy whose patterns have another form.
    """

    def __init__(self, ftfy: Any) -> None:
        super().__init__(name="text_repair")
        badness, chardata, fixes = ftfy.badness, ftfy.chardata, ftfy.fixes

        def fixed(character: str) -> str:
            for fix in (fixes.fix_c1_controls, fixes.fix_latin_ligatures, fixes.fix_character_width, fixes.uncurl_quotes):
                character = fix(character)
            return fixes.fix_line_breaks(character)

        low = [chr(point) for point in (*range(0xD800), *range(0xE000, 0x10000))]
        fixes_table = {c: fixed(c) for c in low if fixed(c) != c}
        self._fixes = _string_table(fixes_table, MARK)
        self._fixed_class = f"[{character_class(fixes_table)}]"
        self._c1 = _string_table({c: fixes.fix_c1_controls(c) for c in low[0x80:0xA0]}, MARK)
        self._ansi = re2_pattern(fixes.ANSI_RE)
        self._controls = f"[{character_class(map(chr, chardata.CONTROL_CHARS))}]"

        self._entity = re2_pattern(chardata.HTML_ENTITY_RE)
        self._entities = _string_table(chardata.HTML_ENTITIES, MARK)
        self._html5 = _string_table(html.entities.html5, MARK)
        longest = max(len(name) for name in html.entities.html5 if not name.endswith(";"))
        self._prefixes = range(longest, 1, -1)
        # The only numbers that do not simply stand for the character: controls, surrogates (below) and non-characters.
        unusual = [*range(0x100), *range(0xFDD0, 0xFDF0), *(plane << 16 | last for plane in range(17) for last in (0xFFFE, 0xFFFF))]
        resolved = {number: html.unescape(f"&#{number};") for number in unusual}
        points = {number: ord(result) if result else _NOTHING for number, result in resolved.items()}
        self._references = number_table(points, _ITSELF)

        self._bad = re2_pattern(badness.BADNESS_RE)
        # RE2 does not look behind or ahead: the character before a stretch is matched with it, and what must not follow set aside.
        detector = re.fullmatch(r"\(\?<!\[(.*?)\]\)\((.*)\)\+", re2_pattern(chardata.UTF8_DETECTOR_RE))
        a_grave = re.fullmatch(r"(\xc3 )\(\?!(.*)\)", fixes.A_GRAVE_WORD_RE.pattern.decode("latin-1"))
        if detector is None or a_grave is None:
            raise UsageError(
                f"Expected the patterns of ftfy 6.3, found ftfy {ftfy.__version__}. Install it with: pip install 'ftfy<6.4'"
            )
        self._detector = f"(^|[^{detector[1]}])((?:{detector[2]})+)"
        self._not_a_grave = f"\xc3 ({a_grave[2]})"
        self._altered = re2_pattern(re.compile(chardata.ALTERED_UTF8_RE.pattern.decode("latin-1")))
        self._lossy = re2_pattern(re.compile(chardata.LOSSY_UTF8_RE.pattern.decode("latin-1")))
        names = chardata.CHARMAP_ENCODINGS
        self._encodings = [chr(number) for number in range(len(names))]
        self._sloppy = [name.startswith("sloppy") for name in names]
        self._restores = [name != "macroman" for name in names]
        self._bytes = _string_table(
            {
                prefix + bytes([byte]).decode(name): chr(byte)
                for prefix, name in zip(self._encodings, names, strict=True)
                for byte in range(256)
            },
            MARK,
        )

        composition = _composition()
        self._decompositions = _string_table(composition.decompositions, MARK)
        self._combining = number_table(composition.classes, 0)
        self._composites = number_table(composition.pairs, 0)
        self._seconds = number_table(composition.seconds, 0)
        self._composed_class = f"[{composition.involved}]"
        lower, kinds = _casing()
        self._lower = _string_table(lower, MARK)
        self._kinds = number_table(kinds, 0)

    @_apart
    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        """Repairs texts.

        Args:
            texts: string (n,); what is no UTF-8 counts as U+FFFD.

        Returns:
            string (n,), UTF-8.
        """
        texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace", replace_control_characters=False)
        for function in (self._fix_text, self._unescape, self._unescape):
            texts = function(texts)
        return self._lower_case(texts)

    def _translate(self, texts: tf.Tensor, table: tf.lookup.StaticHashTable) -> tf.Tensor:
        characters = tf.strings.unicode_split(texts, "UTF-8")
        flat = characters.flat_values
        found = table.lookup(flat)
        return _join(characters.with_flat_values(tf.where(found == MARK, flat, found)))

    # --- ftfy ---------------------------------------------------------------------------------------------------------

    def _fix_text(self, texts: tf.Tensor) -> tf.Tensor:
        lines = tf.strings.split(tf.strings.regex_replace(texts, r"\n", b"\n\xff"), sep=MARK)
        # From the first "<" of a text on its lines are taken for HTML.
        tags = tf.cast(_contains(lines.flat_values, "<"), tf.int64)
        seen = tf.cumsum(tags)
        before = tf.gather(tf.concat([[0], seen], 0), lines.row_starts())
        entities = seen == tf.gather(before, lines.value_rowids())

        def once(texts: tf.Tensor) -> tf.Tensor:
            texts = on_rows(texts, entities & _contains(texts, self._entity), self._fix_entities)
            texts = self._fix_encoding(texts)
            texts = tf.strings.regex_replace(texts, "\r\n", "\n")
            texts = on_rows(texts, _contains(texts, self._fixed_class), lambda rows: self._translate(rows, self._fixes))
            texts = tf.strings.regex_replace(tf.strings.regex_replace(texts, self._ansi, ""), self._controls, "")
            return on_rows(texts, _contains(texts, self._composed_class), self._compose)

        return _join(lines.with_flat_values(_fixed_point(lines.flat_values, once)))

    def _fix_entities(self, texts: tf.Tensor) -> tf.Tensor:
        def resolve(entities: tf.Tensor) -> tf.Tensor:
            found = self._entities.lookup(entities)
            found = tf.where(found == MARK, entities, found)
            found = on_rows(found, tf.strings.regex_full_match(found, "&#(?:[0-9]+|[xX][0-9a-fA-F]+);"), self._resolve_number)
            # ftfy takes a semicolon in the result for one that was not understood.
            return tf.where(found == ";", entities, found)

        return _replace(texts, self._entity, resolve)

    def _fix_encoding(self, texts: tf.Tensor) -> tf.Tensor:
        return on_rows(texts, _contains(texts, self._bad), self._fix_bad)

    @_apart
    def _fix_bad(self, texts: tf.Tensor) -> tf.Tensor:
        """Repairs texts that look wrongly decoded, step by step until they do not, or no step changes them.

        A step reads the text again as a whole; where that fails, it repairs the stretches that look wrong by themselves, in the same
        way and as deep as it takes; where that changes nothing, it replaces C1 controls. A text whose stretches are under repair
        waits as their parent.
        """
        count = tf.size(texts)

        def step(text: tf.Tensor, parent: tf.Tensor, state: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            index = tf.where(state == _ACTIVE)[:, 0]
            bad = _contains(tf.gather(text, index), self._bad)
            state = tf.tensor_scatter_nd_update(state, index[:, None], tf.where(bad, _ACTIVE, _DONE))
            index = pick(index, bad)
            rows = tf.gather(text, index)
            readable, read = self._read_again(rows)

            pieces = split_marked(rows, self._detector, b"\\1\xff\\2\xff")
            flat, row = pieces.flat_values, pieces.value_rowids()
            shorter = tf.strings.length(flat) < tf.gather(tf.strings.length(rows), row)
            wrong = odd_entries(pieces) & shorter & _contains(flat, self._bad) & ~tf.gather(readable, row)
            divided = tf.math.unsorted_segment_max(tf.cast(wrong, tf.int32), row, pieces.nrows()) == 1
            new = tf.where(readable, read, tf.where(divided, rows, self._translate(rows, self._c1)))
            now = tf.where(divided, _WAITING, tf.where(new == rows, _DONE, _ACTIVE))
            text = tf.tensor_scatter_nd_update(text, index[:, None], new)
            state = tf.tensor_scatter_nd_update(state, index[:, None], now)
            below = tf.gather(divided, row)
            text = tf.concat([text, pick(flat, below)], 0)
            parent = tf.concat([parent, pick(tf.gather(index, row), below)], 0)
            state = tf.concat([state, pick(tf.where(wrong, _ACTIVE, _DONE), below)], 0)

            child = tf.where(parent >= 0)[:, 0]
            above, size = tf.gather(parent, child), tf.size(parent)
            unfinished = tf.math.unsorted_segment_max(tf.cast(tf.gather(state, child) != _DONE, tf.int32), above, size) == 1
            ready = (state == _WAITING) & ~unfinished
            joined = tf.strings.unsorted_segment_join(tf.gather(text, child), above, size)
            joined = on_rows(joined, ready & (joined == text), lambda rows: self._translate(rows, self._c1))
            state = tf.where(ready, tf.where(joined == text, _DONE, _ACTIVE), state)
            text = tf.where(ready, joined, text)
            used = (parent >= 0) & tf.gather(ready, tf.maximum(parent, 0))
            return text, tf.where(used, tf.constant(-1, tf.int64), parent), state

        state = [texts, tf.fill([count], tf.constant(-1, tf.int64)), tf.fill([count], _ACTIVE)]
        shapes = [tf.TensorShape([None])] * 3
        return tf.while_loop(lambda *state: tf.reduce_any(state[2] != _DONE), step, state, shape_invariants=shapes)[0][:count]

    def _read_again(self, texts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Texts as bytes of the first encoding in which these are UTF-8: whether there is one, and what they say."""
        count, rows = len(self._encodings), tf.size(texts)
        characters = tf.strings.unicode_split(texts, "UTF-8")
        flat = characters.flat_values
        keys = tf.strings.join([tf.repeat(self._encodings, tf.size(flat)), tf.tile(flat, [count])])
        as_bytes = tf.reshape(self._bytes.lookup(keys), [count, -1])
        unknown = tf.cast(tf.transpose(as_bytes == MARK), tf.int32)
        possible = tf.math.unsorted_segment_max(unknown, characters.value_rowids(), rows) != 1
        lengths = tf.tile(characters.row_lengths(), [count])
        flat = tf.reshape(tf.where(as_bytes == MARK, b"", as_bytes), [-1])
        as_bytes = tf.RaggedTensor.from_row_lengths(flat, lengths, validate=False)
        as_bytes = _join(as_bytes)
        as_bytes = tf.where(tf.repeat(self._restores, rows), self._restore_spaces(as_bytes), as_bytes)
        lossy = tf.strings.regex_replace(as_bytes, self._lossy, "\xef\xbf\xbd")
        as_bytes = tf.where(tf.repeat(self._sloppy, rows), lossy, as_bytes)
        # Python's `$` also matches before a last line feed, and so ftfy takes 0xC0 there for the begin of Java's zero.
        as_bytes = tf.strings.regex_replace(as_bytes, r"\xc0\n\z", "\xc0\x80")
        valid = tf.reshape(tf.strings.regex_full_match(as_bytes, f"(?:{_UTF8})*"), [count, rows]) & tf.transpose(possible)
        first = tf.argmax(tf.cast(valid, tf.int32), axis=0)
        chosen = tf.gather(tf.transpose(tf.reshape(as_bytes, [count, rows])), first, batch_dims=1)
        readable = tf.reduce_any(valid, axis=0)
        return readable, self._decode(tf.where(readable, chosen, b""))

    def _restore_spaces(self, texts: tf.Tensor) -> tf.Tensor:
        """Bytes 0xA0 that some program made spaces. U+0100, which is no byte, keeps the spaces that are meant."""
        texts = tf.strings.regex_replace(texts, self._not_a_grave, "\xc3\u0100\\1")
        texts = tf.strings.regex_replace(texts, "\xc3 ", "\xc3\xa0 ")
        texts = tf.strings.regex_replace(texts, "\u0100", " ")
        return _replace(texts, self._altered, lambda found: tf.strings.regex_replace(found, " ", "\xa0"))

    def _decode(self, texts: tf.Tensor) -> tf.Tensor:
        """UTF-8 of the pattern above, written as U+0000..U+00FF, to text."""
        points = _code_points(texts)
        byte = points.flat_values
        following = tf.pad(byte, [[0, 5]])
        size = tf.size(byte)
        b1, b2, b3, b4, b5 = (following[n : n + size] for n in range(1, 6))

        def bits(value: tf.Tensor, mask: int, shift: int) -> tf.Tensor:
            return tf.bitwise.left_shift(tf.bitwise.bitwise_and(value, tf.constant(mask, tf.int64)), tf.constant(shift, tf.int64))

        surrogate = (byte == 0xED) & (b1 >= 0xA0)
        value = tf.where(byte < 0x80, byte, bits(byte, 0x1F, 6) + bits(b1, 0x3F, 0))
        value = tf.where(byte >= 0xE0, bits(byte, 0x0F, 12) + bits(b1, 0x3F, 6) + bits(b2, 0x3F, 0), value)
        value = tf.where(byte >= 0xF0, bits(byte, 7, 18) + bits(b1, 0x3F, 12) + bits(b2, 0x3F, 6) + bits(b3, 0x3F, 0), value)
        pair = 0x10000 + bits(b1, 0x0F, 16) + bits(b2, 0x3F, 10) + bits(b4, 0x0F, 6) + bits(b5, 0x3F, 0)
        value = tf.where(surrogate, pair, value)
        begins = ((byte < 0x80) | (byte >= 0xC0)) & ~(surrogate & (b1 >= 0xB0))
        rows = pick(points.value_rowids(), begins)
        return _encode(tf.RaggedTensor.from_value_rowids(pick(value, begins), rows, points.nrows(), validate=False))

    # --- HTML ---------------------------------------------------------------------------------------------------------

    def _unescape(self, texts: tf.Tensor) -> tf.Tensor:
        pattern = r"&(?:#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\f <&#;]{1,32};?)"
        return on_rows(texts, _contains(texts, "&"), lambda rows: _replace(rows, pattern, self._resolve))

    def _resolve(self, entities: tf.Tensor) -> tf.Tensor:
        """Entities as `html.unescape` reads them: without a semicolon too, and the longest known begin of an unknown name."""
        names = tf.strings.substr(entities, 1, _WHOLE)
        result = self._html5.lookup(names)
        for length in self._prefixes:
            begin = self._html5.lookup(tf.strings.substr(names, 0, length))
            longer = tf.strings.length(names) > length
            rest = tf.strings.substr(names, tf.minimum(length, tf.strings.length(names)), tf.fill(tf.shape(names), _WHOLE))
            result = tf.where((result == MARK) & longer & (begin != MARK), tf.strings.join([begin, rest]), result)
        result = tf.where(result == MARK, entities, result)
        return on_rows(result, tf.strings.regex_full_match(entities, "&#.*"), self._resolve_number)

    def _resolve_number(self, entities: tf.Tensor) -> tf.Tensor:
        """References by number, "&#65;" or "&#x41;", with or without the semicolon."""
        hexadecimal = tf.strings.regex_full_match(entities, "&#[xX].*")
        digits = tf.strings.lower(tf.strings.regex_replace(entities, "^&#[xX]?0*|;$", ""))
        # Seven digits hold every code point; longer numbers are beyond the last one.
        last = tf.strings.substr(tf.strings.join(["0000000", digits]), -7, 7)
        values = tf.cast(tf.io.decode_raw(last, tf.uint8, fixed_length=7), tf.int64)
        values = tf.where(values >= ord("a"), values - ord("a") + 10, values - ord("0"))
        powers = tf.constant([[10**n for n in range(6, -1, -1)], [16**n for n in range(6, -1, -1)]], tf.int64)
        number = tf.reduce_sum(values * tf.gather(powers, tf.cast(hexadecimal, tf.int32)), axis=-1)
        beyond = (tf.strings.length(digits) > 7) | (number > 0x10FFFF) | ((number >= 0xD800) & (number < 0xE000))
        number = tf.where(beyond, tf.constant(_REPLACEMENT, tf.int64), number)
        found = self._references.lookup(number)
        number = tf.where(found == _ITSELF, number, found)
        text = _encode(tf.RaggedTensor.from_uniform_row_length(tf.maximum(number, 0), 1, validate=False))
        return tf.where(number == _NOTHING, b"", text)

    # --- Unicode ------------------------------------------------------------------------------------------------------

    @_apart
    def _compose(self, texts: tf.Tensor) -> tf.Tensor:
        """Normalisation form C (Unicode Standard Annex 15)."""
        points = _code_points(self._translate(texts, self._decompositions))
        rows, point = points.value_rowids(), points.flat_values
        kind = self._combining.lookup(point)
        # Marks are sorted by class, each run of them after its starter.
        run = tf.cumsum(tf.cast((kind == 0) | (rows != _shifted(rows, -1)), tf.int64))
        point = tf.gather(point, tf.argsort(run * 256 + kind, stable=True))

        def step(point: tf.Tensor, rows: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            kind = self._combining.lookup(point)
            size = tf.size(point, tf.int64)
            index = tf.range(size)
            begins = tf.cast(kind == 0, tf.int64)
            before = tf.cumsum(begins, exclusive=True)
            positions = tf.concat([tf.where(kind == 0)[:, 0], [0]], 0)
            starter = tf.gather(positions, tf.maximum(before - 1, 0))
            adjacent = starter == index - 1
            last = _shifted(kind, 0)
            free = (before > 0) & (tf.gather(rows, starter) == rows) & (adjacent | ((last != 0) & (last < kind)))
            pair = tf.bitwise.left_shift(tf.gather(point, starter), tf.constant(_BITS, tf.int64)) + point
            joined = tf.where(free, self._composites.lookup(pair), tf.zeros_like(point))
            candidate = tf.where(joined > 0, index, size)
            take = (joined > 0) & (tf.gather(tf.math.unsorted_segment_min(candidate, before, size + 1), before) == index)
            # A starter that may itself be joined to the one before it has to wait until all is settled left of it.
            waits = (self._seconds.lookup(point) > 0) & (kind == 0) & (last == 0) & (rows == _shifted(rows, -1))
            leftmost = tf.gather(tf.math.unsorted_segment_min(candidate, rows, size + 1), rows) == index
            take &= ~tf.gather(waits, starter) | leftmost
            point = tf.tensor_scatter_nd_update(point, pick(starter, take)[:, None], pick(joined, take))
            return pick(point, ~take), pick(rows, ~take), tf.reduce_any(take)

        state = [point, rows, tf.constant(True)]
        shapes = [tf.TensorShape([None]), tf.TensorShape([None]), tf.TensorShape([])]
        point, rows, _ = tf.while_loop(lambda point, rows, changed: changed, step, state, shape_invariants=shapes)
        return _encode(tf.RaggedTensor.from_value_rowids(point, rows, tf.size(texts, tf.int64), validate=False))

    def _lower_case(self, texts: tf.Tensor) -> tf.Tensor:
        texts = on_rows(texts, _contains(texts, "Σ"), self._final_sigmas)
        return self._translate(texts, self._lower)

    def _final_sigmas(self, texts: tf.Tensor) -> tf.Tensor:
        """Capital sigmas at the end of words to the small letter's final form, as `str.lower` does."""
        points = _code_points(texts)
        rows, point = points.value_rowids(), points.flat_values
        kind = self._kinds.lookup(point)
        solid = kind != 1
        ordinal = tf.cumsum(tf.cast(solid, tf.int64), exclusive=True)
        positions = tf.where(solid)[:, 0]

        def cased(neighbour: tf.Tensor) -> tf.Tensor:
            inside = (neighbour >= 0) & (neighbour < tf.size(positions, tf.int64))
            position = tf.gather(positions, tf.where(inside, neighbour, tf.zeros_like(neighbour)))
            return inside & (tf.gather(rows, position) == rows) & (tf.gather(kind, position) == 2)

        final = (point == ord("Σ")) & cased(ordinal - 1) & ~cased(ordinal + 1)
        return _encode(points.with_flat_values(tf.where(final, tf.constant(ord("ς"), tf.int64), point)))
