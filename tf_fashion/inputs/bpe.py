"""CLIP's tokeniser: text to ids of byte pairs (Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
Supervision", section 2.4; byte pairs: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units").

A text is repaired (ftfy: wrongly decoded characters, curly quotes, ligatures, NFC), its HTML entities are resolved twice, it is
lower-cased and cut into pieces (letters, single digits, other characters, English endings such as "'s"). The UTF-8 bytes of a
piece are symbols, the last one marked as the end of a word, and neighbours are joined in the order of the merge rules.

`CLIPTokenizer.encode` does this in Python; `CLIPTokenizer.encode_graph` inside a graph (`inputs.bpe_graph`), with equal ids.
"""

from __future__ import annotations

import gzip
import hashlib
import heapq
import html
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_fashion.core.errors import DataError, MissingExtraError, UsageError
from tf_fashion.core.files import atomic_write
from tf_fashion.inputs.bpe_graph import BytePairGraph, split_classes

OPENAI_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
OPENAI_MERGES = 48_894
_SOURCE = "CLIP's vocabulary is clip/bpe_simple_vocab_16e6.txt.gz of github.com/openai/CLIP (1,356,917 bytes)"
_MOST_BYTES = 1 << 26

TRUNCATIONS = ("keep_end", "original")
MARKERS = {
    "openai": ("<|startoftext|>", "<|endoftext|>"),
    "fashionklip": ("<start_of_text>", "<end_of_text>"),
}
END_OF_WORD = "</w>"

# Texts of these characters come out of the repair as they went in.
PLAIN = r"[\t\n\f -%'-~]*"
_PLAIN = re.compile(PLAIN)
_HUGE = re.compile(r"&#0*[1-9][0-9]{7,}")


def byte_symbols() -> list[str]:
    """The 256 symbols in the order of their ids: visible Latin-1 characters stand for themselves, other bytes for U+0100 and on."""
    return [symbol for _, symbol in sorted(zip(byte_ids(), _symbols_by_byte(), strict=True))]


def byte_ids() -> list[int]:
    """Id of each byte 0..255 as a symbol inside a word; at a word's end 256 more."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order = [*visible, *(byte for byte in range(256) if byte not in set(visible))]
    return [number for _, number in sorted((byte, number) for number, byte in enumerate(order))]


def _symbols_by_byte() -> list[str]:
    # 188 bytes are visible.
    return [chr(byte) if number < 188 else chr(256 + number - 188) for byte, number in enumerate(byte_ids())]


def split_pattern(markers: Sequence[str], letter: str = r"\p{L}", number: str = r"\p{N}", other: str = r"^\s\p{L}\p{N}") -> str:
    """CLIP's regular expression for pieces, to be compiled by `regex` with IGNORECASE, which also acts on brackets.

    For other programs the insides of the three brackets are spelled out as `regex` reads them.
    """
    spelled = "|".join([*map(re.escape, markers), "'s", "'t", "'re", "'ve", "'m", "'ll", "'d"])
    return f"(?i:{spelled})|[{letter}]+|[{number}]|[{other}]+"


def import_cleaners() -> tuple[Any, Any]:
    """The modules `ftfy` and `regex`.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    try:
        import ftfy
    except ImportError:
        raise MissingExtraError("ftfy", "clip", "CLIP's tokeniser") from None
    try:
        import regex
    except ImportError:
        raise MissingExtraError("regex", "clip", "CLIP's tokeniser") from None
    return ftfy, regex


def clean(text: str) -> str:
    """Repaired, without HTML entities, with single spaces, in lower case.

    Raises:
        MissingExtraError: `ftfy` or `regex` is not installed.
    """
    ftfy, regex = import_cleaners()
    if not _PLAIN.fullmatch(text):
        text = ftfy.fix_text(text)
        for _ in range(2):
            # Python refuses to read numbers of thousands of digits; all beyond Unicode are alike.
            text = html.unescape(_HUGE.sub("&#99999999", text))
    return regex.sub(r"\s+", " ", text.strip()).strip().lower()


def _without_surrogates(text: str) -> str:
    """Pairs of surrogates as the characters they mean, single ones, which UTF-8 does not have, as U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class BytePairs:
    """The merge rules and what follows from them: symbols, their ids, and the ids of a word.

    Args:
        merges: Rules "left right" in order of their rank, over the symbols of `byte_symbols` and those with `</w>` at their end.

    Attributes:
        size: 256 byte symbols, the same at the end of a word, one symbol per rule, two markers.
        ids: symbol -> id.
        pairs: (id, id) -> (rank, id of the joined symbol).

    Raises:
        UsageError: a rule without exactly two symbols, or with one that is neither a byte symbol nor made by a rule.
    """

    def __init__(self, merges: Sequence[str]) -> None:
        rules = [tuple(merge.split(" ")) for merge in merges]
        for rank, rule in enumerate(rules):
            if len(rule) != 2 or not all(rule):
                raise UsageError(f"Merge rule {rank}: expected two symbols with a blank between them, found {merges[rank]!r}.")
        symbols = byte_symbols()
        vocabulary = [*symbols, *(symbol + END_OF_WORD for symbol in symbols), *("".join(rule) for rule in rules)]
        self.size = len(vocabulary) + 2
        self.ids = {symbol: number for number, symbol in enumerate(vocabulary)}
        self.pairs: dict[tuple[int, int], tuple[int, int]] = {}
        for rank, rule in enumerate(rules):
            for symbol in rule:
                if symbol not in self.ids:
                    raise UsageError(f"Merge rule {rank} ({merges[rank]!r}): no byte and no rule makes the symbol {symbol!r}.")
            self.pairs[self.ids[rule[0]], self.ids[rule[1]]] = rank, self.ids["".join(rule)]
        self._bytes = byte_ids()
        self._cache: dict[str, list[int]] = {}

    def encode(self, word: str) -> list[int]:
        """Ids of one piece: the pair with the lowest rank is joined wherever it stands, until no rule applies."""
        if word in self._cache:
            return self._cache[word]
        ids = [self._bytes[byte] for byte in word.encode()]
        ids[-1] += 256
        while len(ids) > 1:
            known = [(self.pairs[pair], pair) for pair in zip(ids, ids[1:], strict=False) if pair in self.pairs]
            if not known:
                break
            (_, joined), (left, right) = min(known)
            position, result = 0, []
            while position < len(ids):
                found = ids[position] == left and position + 1 < len(ids) and ids[position + 1] == right
                result.append(joined if found else ids[position])
                position += 2 if found else 1
            ids = result
        # Rare words must not fill the memory of a long-lived service.
        if len(self._cache) < 1 << 17 and len(word) < 64:
            self._cache[word] = ids
        return ids


def read_merges(path: str | Path, merges: int | None = None) -> tuple[list[str], str]:
    """Merge rules of a file in OpenAI's format: gzip or plain UTF-8, a heading with "#version", then one rule "left right" a line.

    Args:
        path: The file.
        merges: How many rules; by default 48,894 as CLIP uses of OpenAI's file, or all of a shorter one.

    Returns:
        The rules, and the SHA-256 of the file as it lies on the disk.

    Raises:
        DataError: no such file; damaged; no rules or fewer than asked for; a line without two symbols.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: expected a vocabulary of byte pairs, found no such file. {_SOURCE}.")
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    packed = content[:2] == b"\x1f\x8b"
    if path.suffix == ".gz" and not packed:
        raise DataError(f"{path}: expected a gzip file, found one that starts with {content[:16]!r}. Fetch it again: {_SOURCE}.")
    try:
        if packed:
            with gzip.open(path) as file:
                content = file.read(_MOST_BYTES)
        text = content.decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected gzip or UTF-8 text, found a damaged file ({error}). Fetch it again: {_SOURCE}.") from None
    # splitlines() would also cut at characters that stand for bytes.
    lines = text.rstrip("\n").split("\n")
    first = 1 if "#version" in lines[0] else 0
    rules = [line.rstrip("\r") for line in lines[first:]]
    for number, rule in enumerate(rules, start=first + 1):
        symbols = rule.split(" ")
        if len(symbols) != 2 or not all(symbols):
            raise DataError(f"{path}, line {number}: expected two symbols with a blank between them, found {rule[:80]!r}. {_SOURCE}.")
    if merges is not None and len(rules) < merges:
        raise DataError(f"{path}: expected at least {merges:,} merge rules, found {len(rules):,}. {_SOURCE}.")
    return rules[: OPENAI_MERGES if merges is None else merges], sha256


def learn_merges(texts: Iterable[str], size: int, min_count: int = 2) -> list[str]:
    """Merge rules learned from one's own captions (Sennrich et al. 2016, algorithm 1, over bytes).

    The most frequent pair of neighbours becomes a rule and a symbol, again and again; of equally frequent ones the first in the
    order of the alphabet. So the result depends on nothing but the arguments.

    Args:
        texts: Captions; cleaned and cut as `CLIPTokenizer` does.
        size: Size of the vocabulary to reach, with 512 byte symbols and two markers. Fewer if the captions have no more pairs.
        min_count: Pairs seen less often make no rule.

    Returns:
        Rules for `CLIPTokenizer`.

    Raises:
        UsageError: a size below 514.
        MissingExtraError: `ftfy` or `regex` is not installed.
    """
    if size < 514:
        raise UsageError(f"learn_merges(size=...): expected at least 514 (512 byte symbols and two markers), found {size!r}.")
    _, regex = import_cleaners()
    pattern = regex.compile(split_pattern(()), regex.IGNORECASE)
    counts = Counter(piece for text in texts for piece in pattern.findall(clean(text)))
    alphabet = _symbols_by_byte()
    words: list[tuple[list[str], int]] = []
    pairs: Counter[tuple[str, str]] = Counter()
    where: dict[tuple[str, str], set[int]] = defaultdict(set)
    for number, (word, count) in enumerate(sorted(counts.items())):
        symbols = [alphabet[byte] for byte in word.encode()]
        symbols[-1] += END_OF_WORD
        words.append((symbols, count))
        for pair in zip(symbols, symbols[1:], strict=False):
            pairs[pair] += count
            where[pair].add(number)
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    rules: list[str] = []
    while heap and len(rules) < size - 514:
        count, pair = heapq.heappop(heap)
        if pairs[pair] != -count:
            continue  # counted anew since; the fresh entry is in the heap
        if -count < min_count:
            break
        rules.append(" ".join(pair))
        changed = set()
        for number in where.pop(pair):
            symbols, times = words[number]
            for old in zip(symbols, symbols[1:], strict=False):
                pairs[old] -= times
                changed.add(old)
            position = 0
            while position < len(symbols) - 1:
                if (symbols[position], symbols[position + 1]) == pair:
                    symbols[position : position + 2] = ["".join(pair)]
                position += 1
            for new in zip(symbols, symbols[1:], strict=False):
                pairs[new] += times
                where[new].add(number)
                changed.add(new)
        for other in changed:
            if pairs[other] > 0:
                heapq.heappush(heap, (-pairs[other], other))
    return rules


@keras.saving.register_keras_serializable("tf_fashion")
class CLIPTokenizer(keras.layers.Layer):
    """Texts to CLIP's padded ids: start marker, byte pairs, end marker, zeros.

    The vocabulary is part of the configuration, so that saved models and exports need no file.

    Args:
        vocabulary: Merge rules "left right" in order, as a list or as one text with a rule a line; see `from_file` and
            `learn_merges`. N rules make a vocabulary of N + 514: the start marker is the last id but one, the end marker the last.
        context_length: Width of the result.
        truncation: What becomes of a longer text. `keep_end`: its end is cut and the end marker kept, as OpenAI's
            `truncate=True` does. `original`: FashionKLIP's, which cuts the end marker too; as the text tower reads its feature at
            the largest id, all such texts then have the same feature.
        markers: How a text spells the markers literally: `openai` "<|startoftext|>", `fashionklip` "<start_of_text>".
        sha256: Of the file that the rules come from; recorded by `from_file`, not checked.

    Input: strings (n,), a tensor, array or list. Output: int32 (n, context_length). Calling the layer is `encode_graph`.

    Raises:
        UsageError: an option out of its range, or merge rules that cannot be used.
    """

    def __init__(
        self,
        vocabulary: Sequence[str] | str,
        context_length: int = 77,
        truncation: str = "keep_end",
        markers: str = "openai",
        sha256: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if truncation not in TRUNCATIONS:
            raise UsageError(f"CLIPTokenizer(truncation=...): expected {' or '.join(map(repr, TRUNCATIONS))}, found {truncation!r}.")
        if markers not in MARKERS:
            raise UsageError(f"CLIPTokenizer(markers=...): expected {' or '.join(map(repr, MARKERS))}, found {markers!r}.")
        if isinstance(context_length, bool) or not isinstance(context_length, int) or context_length < 2:
            raise UsageError(f"CLIPTokenizer(context_length=...): expected a whole number from 2, found {context_length!r}.")
        if isinstance(vocabulary, str) and vocabulary and " " not in vocabulary:
            raise UsageError(
                f"CLIPTokenizer(vocabulary=...): expected merge rules, found {vocabulary[:80]!r}. "
                "A file is read with CLIPTokenizer.from_file(path)."
            )
        # One string rather than a list: Keras would wrap and track each of its entries.
        self.vocabulary = vocabulary if isinstance(vocabulary, str) else "\n".join(vocabulary)
        self.context_length = context_length
        self.truncation = truncation
        self.markers = markers
        self.sha256 = sha256
        self._pairs = BytePairs(self.merges)
        self._pattern: Any = None
        self._graph: BytePairGraph | None = None
        self.supports_jit = False
        self._convert_input_args = False
        self._allow_non_tensor_positional_args = True

    @classmethod
    def from_file(cls, path: str | Path, merges: int | None = None, **options: Any) -> CLIPTokenizer:
        """A tokeniser with the rules of a file.

        Args:
            path: OpenAI's `bpe_simple_vocab_16e6.txt.gz`, or what `save` wrote.
            merges: See `read_merges`.
            options: Arguments of the constructor.

        Raises:
            DataError: see `read_merges`; or rules that cannot be used.
            UsageError: an option out of its range.
        """
        rules, sha256 = read_merges(path, merges)
        try:
            BytePairs(rules)
        except UsageError as error:
            raise DataError(f"{path}: {error} {_SOURCE}.") from None
        return cls(rules, sha256=sha256, **options)

    @property
    def merges(self) -> list[str]:
        """The merge rules in order."""
        return self.vocabulary.split("\n") if self.vocabulary else []

    @property
    def vocabulary_size(self) -> int:
        """Number of ids."""
        return self._pairs.size

    @property
    def start_id(self) -> int:
        """Id at the begin of each row."""
        return self._pairs.size - 2

    @property
    def end_id(self) -> int:
        """Id after the text; the largest one."""
        return self._pairs.size - 1

    def save(self, path: str | Path) -> None:
        """Writes the rules in the format of `from_file`, packed if the name ends in `.gz`; the same rules make the same bytes.

        Raises:
            DataError: the disk is full.
        """
        content = f"#version: 0.2\n{self.vocabulary}\n".encode()
        with atomic_write(path, "wb") as file:
            file.write(gzip.compress(content, mtime=0) if Path(path).suffix == ".gz" else content)

    def pieces(self, text: str) -> list[str]:
        """The pieces of a text before byte pairs are joined.

        Raises:
            MissingExtraError: `ftfy` or `regex` is not installed.
        """
        if self._pattern is None:
            _, regex = import_cleaners()
            self._pattern = regex.compile(split_pattern(MARKERS[self.markers]), regex.IGNORECASE)
        return self._pattern.findall(clean(text))

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Ids of texts, in Python.

        Args:
            texts: n strings, or bytes in UTF-8 (what is no UTF-8 counts as U+FFFD).

        Returns:
            int32 (n, context_length).

        Raises:
            UsageError: not a list of strings.
            MissingExtraError: `ftfy` or `regex` is not installed.
        """
        if isinstance(texts, (str, bytes)):
            raise UsageError(f"CLIPTokenizer.encode: expected a list of texts, found the single text {texts[:80]!r}.")
        special = self._special
        rows = np.zeros((len(texts), self.context_length), np.int32)
        for row, text in zip(rows, texts, strict=True):
            if isinstance(text, bytes):
                text = text.decode("utf-8", "replace")
            if not isinstance(text, str):
                raise UsageError(f"CLIPTokenizer.encode: expected texts, found {text!r} of type {type(text).__name__}.")
            ids = [self.start_id]
            for piece in self.pieces(text):
                ids += [special[piece]] if piece in special else self._pairs.encode(piece)
                if len(ids) >= self.context_length:
                    break
            ids = [*ids, self.end_id]
            if len(ids) > self.context_length:
                ids = ids[: self.context_length]
                if self.truncation == "keep_end":
                    ids[-1] = self.end_id
            row[: len(ids)] = ids
        return rows

    @property
    def _special(self) -> dict[str, int]:
        return dict(zip(MARKERS[self.markers], (self.start_id, self.end_id), strict=True))

    def encode_graph(self, texts: Any) -> tf.Tensor:
        """Ids of texts, in a graph (tf.data, tf.function, SavedModel) or eagerly; equal to those of `encode`.

        Give whole batches. Texts of printable ASCII without "&" skip the repair. The tables are made at the first call, which
        takes seconds, and become part of a graph, which then needs neither `ftfy` nor `regex`; a tf.data pipeline prepares the
        graph anew for each pass, so ids that do not change from epoch to epoch are better made once, with `encode`.

        Args:
            texts: string (n,); what is no UTF-8 counts as U+FFFD.

        Returns:
            int32 (n, context_length).

        Raises:
            UsageError: not a vector.
            MissingExtraError: `ftfy` or `regex` is not installed.
        """
        if isinstance(texts, (list, tuple, np.ndarray)):
            texts = [_without_surrogates(text) if isinstance(text, str) else text for text in texts]
        texts = tf.convert_to_tensor(texts, tf.string)
        if texts.shape.rank != 1:
            raise UsageError(f"CLIPTokenizer: expected a vector of texts, found the shape {texts.shape}.")
        if self._graph is None:
            ftfy, regex = import_cleaners()
            self._graph = BytePairGraph(
                ftfy,
                split_pattern(MARKERS[self.markers], **split_classes(regex)),
                PLAIN,
                byte_ids(),
                self._pairs.pairs,
                self._special,
                self.vocabulary_size,
                self.context_length,
                self.truncation == "keep_end",
            )
        return tf.ensure_shape(self._graph(texts), (texts.shape[0], self.context_length))

    def call(self, texts: Any) -> tf.Tensor:
        return self.encode_graph(texts)

    def compute_output_spec(self, texts: Any) -> keras.KerasTensor:
        return keras.KerasTensor((texts.shape[0], self.context_length), "int32")

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "vocabulary": self.vocabulary,
            "context_length": self.context_length,
            "truncation": self.truncation,
            "markers": self.markers,
            "sha256": self.sha256,
        }
