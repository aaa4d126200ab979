"""Word vectors from GloVe (or word2vec) text files into an embedding table."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.inputs.arrays import read_npz

Vectors = dict[str, np.ndarray]
MISSING = ("scaled_normal", "legacy_normal", "zeros")


def _lines(path: Path, progress: bool) -> Iterator[tuple[int, bytes]]:
    with (
        open(path, "rb") as file,
        tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=path.name, disable=not progress) as bar,
    ):
        stream = io.BufferedReader(gzip.GzipFile(fileobj=file)) if path.suffix == ".gz" else file
        number = last = 0
        try:
            for number, line in enumerate(stream, start=1):
                if number % 10_000 == 0:
                    bar.update(file.tell() - last)
                    last = file.tell()
                yield number, line
        except (OSError, EOFError) as error:
            raise DataError(f"{path}, line {number + 1}: the file cannot be read further ({error}). Fetch it again.") from None
        bar.update(path.stat().st_size - last)


def _load_text(path: Path, wanted: set[str], progress: bool) -> Vectors:
    vectors: Vectors = {}
    width = 0
    encoded = {word.encode("utf-8") for word in wanted}
    for number, line in _lines(path, progress):
        parts = line.rstrip(b"\r\n ").split(b" ")
        if parts == [b""]:
            continue
        if number == 1 and len(parts) == 2 and all(part.isdigit() for part in parts):
            width = int(parts[1])
            continue
        if not width:
            width = len(parts) - 1
        if len(parts) < width + 1 or width < 1:
            raise DataError(f"{path}, line {number}: expected a word and {width or 'some'} numbers, found {len(parts) - 1} numbers.")
        # A few words of the 840B file hold blanks ("at name@domain.com"): the numbers are the last ones of the line.
        word = b" ".join(parts[:-width])
        if word not in encoded:
            continue
        try:
            vector = np.array(parts[-width:], dtype=np.float64).astype(np.float32)
        except ValueError:
            raise DataError(f"{path}, line {number}: expected {width} numbers after the word, found other text.") from None
        if not np.isfinite(vector).all():
            raise DataError(f"{path}, line {number}: the vector of {word.decode('utf-8', 'replace')!r} holds NaN or infinity.")
        vectors.setdefault(word.decode("utf-8"), vector)
    if not width:
        raise DataError(f"{path}: expected lines of a word and its numbers, found an empty file.")
    return vectors


def _load_npz(path: Path, wanted: set[str]) -> Vectors:
    words, vectors = read_npz(path, "words", "vectors")
    if vectors.ndim != 2 or words.shape != vectors.shape[:1]:
        raise DataError(f"{path}: expected words (N,) and vectors (N, D), found shapes {words.shape} and {vectors.shape}.")
    return {str(word): vectors[row].astype(np.float32) for row, word in enumerate(words) if str(word) in wanted}


def load_glove(path: str | Path, words: Iterable[str], progress: bool = True) -> Vectors:
    """Reads the vectors of `words` from a file, streaming; the other lines are skipped unparsed.

    Args:
        path: Text with `word v1 v2 ...` in each line (with or without word2vec's first line `count width`), the same with the
            ending `.gz`, or an `.npz` with the arrays `words` (N,) and `vectors` (N, D).
        words: The vocabulary. Words that the file does not have are absent from the result.
        progress: Whether to show a progress bar.

    Returns:
        Word -> float32 (D,).

    Raises:
        UsageError: no such file.
        DataError: a line has fewer numbers than the first one, or the file is damaged; the message has the line number.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(
            f"{path}: no such file. Fetch GloVe vectors from https://nlp.stanford.edu/projects/glove/, unpack them, "
            "and give the path of the .txt file."
        )
    wanted = set(words)
    return _load_npz(path, wanted) if path.suffix == ".npz" else _load_text(path, wanted, progress)


def _width(source: Vectors, number: int) -> int:
    widths = {len(vector) for vector in source.values()}
    if len(widths) != 1:
        found = ", ".join(map(str, sorted(widths))) or "no vector at all"
        raise DataError(f"Word vectors, source {number + 1}: expected vectors of one width, found {found}.")
    return widths.pop()


def glove_table(
    words: Sequence[str], sources: Sequence[Vectors], missing: str = "scaled_normal", seed: int = 0, padding_id: int | None = 0
) -> np.ndarray:
    """Embedding table whose row i belongs to `words[i]`: the concatenation of the sources' vectors.

    Args:
        words: Vocabulary in the order of the ids, special words included.
        sources: One or several results of `load_glove`, in the order of concatenation.
        missing: What words without vectors get. `scaled_normal`: a word that some source lacks has zeros in that part, and a word
            that all lack has normal values with each source's own mean and standard deviation. `zeros`: the same with zeros.
            `legacy_normal`: the FashionIQ 2020 entry, where only words present in all sources are filled and all others keep
            N(0, 1), about four times as long as a GloVe vector.
        seed: Seed of the random rows.
        padding_id: Row set to zero (not under `legacy_normal`, where the original leaves it random); None for none.

    Returns:
        float32 (len(words), sum of the widths).

    Raises:
        UsageError: unknown `missing`, or no source.
        DataError: a source without vectors or with several widths.
    """
    if missing not in MISSING:
        raise UsageError(f"glove_table(missing=...): expected one of {', '.join(MISSING)}; found {missing!r}.")
    if not sources:
        raise UsageError("glove_table: expected at least one source of word vectors, found none.")
    widths = [_width(source, number) for number, source in enumerate(sources)]
    generator = np.random.default_rng(seed)
    noise = generator.standard_normal((len(words), sum(widths))).astype(np.float32)
    legacy = missing == "legacy_normal"
    table = noise if legacy else np.zeros_like(noise)
    starts = np.cumsum([0, *widths])
    if missing == "scaled_normal":
        unknown = [row for row, word in enumerate(words) if not any(word in source for source in sources)]
        for source, start, end in zip(sources, starts, starts[1:], strict=False):
            values = np.stack(list(source.values()))
            table[unknown, start:end] = noise[unknown, start:end] * values.std() + values.mean()
    for row, word in enumerate(words):
        if legacy and not all(word in source for source in sources):
            continue
        for source, start, end in zip(sources, starts, starts[1:], strict=False):
            if word in source:
                table[row, start:end] = source[word]
    if padding_id is not None and not legacy:
        table[padding_id] = 0.0
    return table


def glove_filled(words: Sequence[str], sources: Sequence[Vectors]) -> np.ndarray:
    """bool (len(words),): which words all sources have (the rows that `legacy_normal` fills)."""
    return np.array([all(word in source for source in sources) for word in words], bool)
