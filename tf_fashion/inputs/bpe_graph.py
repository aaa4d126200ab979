"""CLIP's tokeniser inside a graph, of core TensorFlow operations alone: repair, split, join byte pairs, pack."""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

from tf_fashion.inputs.unicode_graph import TextRepair, character_class, number_table, odd_entries, on_rows, pick, split_marked

_NO_RANK = tf.int64.max


@functools.cache
def split_classes(regex: Any) -> dict[str, str]:
    """The brackets of CLIP's pattern as the module `regex` reads them, spelled out for RE2: `letter`, `number`, `other`."""
    everything = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000))))
    brackets = {"letter": r"\p{L}", "number": r"\p{N}", "other": r"^\s\p{L}\p{N}"}
    return {
        name: character_class("".join(regex.findall(f"[{bracket}]+", everything, regex.IGNORECASE)))
        for name, bracket in brackets.items()
    }


@functools.cache
def _text_repair(ftfy: Any) -> TextRepair:
    # It depends on no vocabulary, and tracing it takes seconds.
    return TextRepair(ftfy)


class BytePairGraph(tf.Module):
    """Texts to CLIP's ids, in-graph.

    Args:
        ftfy: The module; see `TextRepair`.
        pattern: For pieces, in RE2's spelling.
        plain: Pattern of the texts that need no repair but lower case.
        byte_ids: Id of each of the 256 bytes inside a word; at its end 256 more.
        pairs: (id, id) -> (rank, id of the joined symbol).
        markers: Piece -> id of the two markers.
        size: Number of ids.
        context_length, keep_end: See `CLIPTokenizer`.
    """

    def __init__(
        self,
        ftfy: Any,
        pattern: str,
        plain: str,
        byte_ids: list[int],
        pairs: dict[tuple[int, int], tuple[int, int]],
        markers: dict[str, int],
        size: int,
        context_length: int,
        keep_end: bool,
    ) -> None:
        super().__init__(name="byte_pairs")
        self._repair = _text_repair(ftfy)
        self._pattern = pattern
        self._plain = plain
        self._byte_ids = byte_ids
        self._markers = markers
        self._size = size
        self._context_length = context_length
        self._keep_end = keep_end
        # A table must not be empty; no pair has the key -1.
        ranks = {-1: _NO_RANK, **{left * size + right: rank for (left, right), (rank, _) in pairs.items()}}
        self._ranks = number_table(ranks, _NO_RANK)
        joined = dict(pairs.values())
        self._joined = [joined.get(rank, 0) for rank in range(max(joined, default=0) + 1)]

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None], tf.string)])
    def __call__(self, texts: tf.Tensor) -> tf.Tensor:
        """Ids int32 (n, context_length) of texts, string (n,)."""
        # All is done by operations on strings and small integers; moving them to an accelerator would only cost.
        with tf.device("CPU:0"):
            plain = tf.strings.regex_full_match(texts, self._plain)
            texts = on_rows(tf.strings.lower(texts), ~plain, lambda _: self._repair(pick(texts, ~plain)))
            pieces = split_marked(texts, self._pattern)
            words = pick(pieces.flat_values, odd_entries(pieces))
            ids = self._join_pairs(tf.RaggedTensor.from_row_lengths(words, pieces.row_lengths() // 2, validate=False))
            start, end = self._markers.values()
            row = tf.pad(ids.to_tensor(shape=(None, self._context_length - 1)), [[0, 0], [1, 0]], constant_values=start)
            last = ids.row_lengths() + 1
            if self._keep_end:
                last = tf.minimum(last, self._context_length - 1)
            columns = tf.range(self._context_length, dtype=tf.int64)
            return tf.cast(tf.where(columns == last[:, None], tf.constant(end, tf.int64), row), tf.int32)

    def _join_pairs(self, words: tf.RaggedTensor) -> tf.RaggedTensor:
        """Ids of each row's words, ragged int64 (n, None). Every different word is worked on once."""
        different, which = tf.unique(words.flat_values, tf.int64)
        symbols = tf.strings.unicode_decode(different, "ISO-8859-1", replace_control_characters=False)
        word = symbols.value_rowids()
        last = tf.concat([word[1:] != word[:-1], tf.fill([tf.minimum(tf.size(word), 1)], True)], 0)
        ids = tf.gather(tf.constant(self._byte_ids, tf.int64), symbols.flat_values) + tf.where(last, tf.constant(256, tf.int64), 0)
        ids, word = self._merge(ids, word, tf.size(different, tf.int64))

        lengths = tf.math.unsorted_segment_sum(tf.ones_like(word), word, tf.size(different))
        starts = tf.cumsum(lengths, exclusive=True)
        for number, marker in enumerate(self._markers):
            found = different == marker
            starts = tf.where(found, tf.size(ids, tf.int64) + number, starts)
            lengths = tf.where(found, tf.constant(1, tf.int64), lengths)
        ids = tf.concat([ids, tf.constant(list(self._markers.values()), tf.int64)], 0)
        starts, lengths = tf.gather(starts, which), tf.gather(lengths, which)
        spans = tf.ragged.range(starts, starts + lengths)
        spans = spans.with_flat_values(tf.gather(ids, spans.flat_values))
        return tf.RaggedTensor.from_row_splits(spans, words.row_splits, validate=False).merge_dims(1, 2)

    def _merge(self, ids: tf.Tensor, word: tf.Tensor, words: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Joins the pairs of all words at the same time, in each word those of its lowest rank, until no word has one."""

        def ranks(ids: tf.Tensor, word: tf.Tensor) -> tf.Tensor:
            known = self._ranks.lookup(ids[:-1] * self._size + ids[1:])
            return tf.where(word[:-1] == word[1:], known, _NO_RANK)

        def step(ids: tf.Tensor, word: tf.Tensor, rank: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            lowest = tf.math.unsorted_segment_min(rank, word[:-1], words)
            match = (rank != _NO_RANK) & (rank == tf.gather(lowest, word[:-1]))
            # Of matches that overlap ("a a a") every second one counts, from the left.
            begins = match & ~tf.concat([[False], match[:-1]], 0)
            run = tf.cumsum(tf.cast(begins, tf.int64)) - 1
            index = tf.range(tf.size(match, tf.int64))
            first = tf.concat([tf.where(begins)[:, 0], [0]], 0)
            match &= (index - tf.gather(first, tf.maximum(run, 0))) % 2 == 0
            joined = tf.gather(tf.constant(self._joined, tf.int64), tf.where(match, rank, tf.zeros_like(rank)))
            ids = tf.where(tf.concat([match, [False]], 0), tf.concat([joined, [0]], 0), ids)
            keep = ~tf.concat([[False], match], 0)
            ids, word = pick(ids, keep), pick(word, keep)
            return ids, word, ranks(ids, word)

        shapes = [tf.TensorShape([None])] * 3
        state = [ids, word, ranks(ids, word)]
        return tf.while_loop(lambda *state: tf.reduce_any(state[2] != _NO_RANK), step, state, shape_invariants=shapes)[:2]
