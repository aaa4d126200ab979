"""Concepts from one's own captions: noun phrases that occur often enough, and which phrase is a kind of which.

mined = mine_concepts(["a red cotton t-shirt with short sleeves", ...])
mined.vocabulary.father("red cotton t-shirt")     # "cotton t-shirt"
write_mined("concepts", records, mined)

A caption gives the noun phrases in it, and from each the wider ones: "long black wool coat" also gives "black wool coat", "wool coat",
"coat", "long coat" and "black coat". "A skirt in navy blue" is a "navy blue skirt". Plurals, spellings ("mens", "men's") and
determiners make no difference; the wording that occurs most often names the concept.

The father of a phrase is the longest other phrase with the same head that is contained in it (paper: is-a by containment). Words that
belong together stay together, so "black and white dress" is no kind of "white dress", and "shirt dress" no kind of "shirt".

The released program does not build its concepts. Paper: FashionKLIP (ACL 2023, Industry Track), which takes noun phrases by spaCy.
"""

from __future__ import annotations

import importlib
import itertools
import re
import warnings
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tf_fashion.core.errors import DataError, MissingExtraError, UsageError
from tf_fashion.core.files import make_out_folder
from tf_fashion.datasets.catalogue import ID_COLUMNS, TEXT_COLUMNS, read_table
from tf_fashion.datasets.concepts import ConceptVocabulary
from tf_fashion.datasets.fashion_words import (
    ADJECTIVES,
    AFTER_MODIFIER,
    COLOUR_ENDINGS,
    COLOURS,
    EMPTY_HEADS,
    IRREGULAR,
    NEGATIONS,
    NOUNS,
    OTHERS,
    PAIRS,
    PART_QUALITIES,
    PART_WORDS,
    SAME_WORD,
    SHADES,
)
from tf_fashion.datasets.image_text import TextRecord, open_image_text
from tf_fashion.datasets.json_lines import read_lines, write_lines

Tagger = Callable[[Sequence[str]], list[str]]
"""Tokens of one caption -> one tag of the Penn Treebank per token."""
Units = tuple[tuple[str, ...], ...]
"""A phrase as groups of words that belong together; the last group is the head."""

TAGGERS = ("auto", "spacy", "textblob")
MAX_WORDS = 6
# When two words count as one: seen so often, and the second word with the first in this share of its phrases.
COMPOUND_COUNT = 10
COMPOUND_SHARE = 0.95
_TOKEN = re.compile(r"\d+/\d+|[^\W_]+(?:[-'\u2019][^\W_]+)*|[^\w\s]")
# Of "bluer", "pinker": comparisons tell nothing about a picture.
_COMPARED = frozenset(form for c in COLOURS for form in (f"{c}er", f"{c}r", f"{c}{c[-1]}er", f"{c[:-1]}ier"))
_TEXT_KEYS = ("query_text", *TEXT_COLUMNS)


def tokens_of(caption: str) -> list[str]:
    """Lower-case words and punctuation marks; possessive endings are taken off, and pairs such as "t shirt" are one word."""
    words = [re.sub(r"['\u2019]s?$", "", word) if len(word) > 1 else word for word in _TOKEN.findall(caption.lower())]
    joined: list[str] = []
    for word in words:
        pair = PAIRS.get((joined[-1], word)) if joined else None
        if pair is not None:
            joined[-1] = pair
        elif word:
            joined.append(word)
    return joined


@cache
def make_tagger(name: str = "auto") -> Tagger:
    """What says which words are nouns and adjectives.

    Args:
        name: "spacy" (with the first of its English models that is installed), "textblob", or "auto": spaCy where it has a model,
            else TextBlob.

    Raises:
        UsageError: another name.
        MissingExtraError: the package, or a model for spaCy, is not installed.
    """
    if name not in TAGGERS:
        raise UsageError(f"Unknown tagger {name!r}. Known: {', '.join(TAGGERS)}.")
    if name in ("auto", "spacy"):
        tagger = _spacy_tagger()
        if tagger is not None:
            return tagger
        if name == "spacy":
            raise MissingExtraError("spacy (with an English model such as en_core_web_sm)", "concepts", "The tagger 'spacy'")
    try:
        pattern = importlib.import_module("textblob.en.taggers").PatternTagger()
    except ImportError:
        raise MissingExtraError("textblob", "concepts", "Finding noun phrases") from None
    with warnings.catch_warnings():
        # The package reads its lexicon at the first use and leaves the file to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        pattern.tag("a", tokenize=False)

    def tag(tokens: Sequence[str]) -> list[str]:
        tags = [tag for _, tag in pattern.tag(" ".join(token.replace(" ", "-") for token in tokens), tokenize=False)] if tokens else []
        # Should it ever split a token: everything unknown counts as a noun.
        return tags if len(tags) == len(tokens) else ["NN" if token[0].isalnum() else "." for token in tokens]

    return tag


def _spacy_tagger() -> Tagger | None:
    try:
        spacy = importlib.import_module("spacy")
    except ImportError:
        return None
    models = [name for name in spacy.util.get_installed_models() if name.startswith("en_")]
    if not models:
        return None
    pipeline = spacy.load(sorted(models, key=lambda name: (not name.endswith("_sm"), name))[0], exclude=["ner", "parser", "lemmatizer"])

    def tag(tokens: Sequence[str]) -> list[str]:
        return [token.tag_ for token in pipeline(spacy.tokens.Doc(pipeline.vocab, list(tokens)))] if tokens else []

    return tag


def _kinds(tokens: Sequence[str], tagger: Tagger) -> list[str]:
    """For each token: "N" noun, "A" modifier, "P" participle, or "" for everything else."""
    kinds: list[str] = []
    for token, tag in zip(tokens, tagger(tokens), strict=True):
        before = kinds[-1] if kinds else ""
        if token in AFTER_MODIFIER:
            kind = "N" if before in ("N", "A", "P") else ""
        elif token in OTHERS or token in _COMPARED:
            kind = ""
        elif token in COLOURS or token in ADJECTIVES:
            kind = "A"
        elif token in NOUNS or " " in token or tag.startswith("NN"):
            kind = "N"
        elif tag in ("JJ", "CD") or (tag == "FW" and token[0].isalpha()):
            kind = "A" if token[0].isalnum() else ""
        else:
            kind = "P" if tag in ("VBN", "VBG") else ""
        kinds.append(kind if token[0].isalnum() else "")
    return kinds


def _colour_at(tokens: Sequence[str], place: int) -> int:
    """How many words at `place` name a colour: "white" 1, "navy blue" 2, "black and white" 3, nothing 0."""
    if place >= len(tokens):
        return 0
    length = 0
    if tokens[place] in SHADES and place + 1 < len(tokens) and tokens[place + 1] in COLOURS:
        length = 2
    elif tokens[place] in COLOURS:
        length = 1
    if length and place + length < len(tokens) and tokens[place + length] in COLOUR_ENDINGS:
        length += 1
    if length and place + length < len(tokens) and tokens[place + length] in ("and", "&"):
        more = _colour_at(tokens, place + length + 1)
        if more:
            return length + 1 + more
    return length


def noun_phrases(tokens: Sequence[str], kinds: Sequence[str]) -> Iterator[list[str]]:
    """The longest noun phrases, in order, as words; a colour after "in" is put before them. "No sleeves" gives nothing."""
    place = 0
    while place < len(tokens):
        words: list[str] = []
        end = place
        last_noun = -1
        while end < len(tokens):
            colours = _colour_at(tokens, end)
            if colours:
                words += ["and" if word == "&" else word for word in tokens[end : end + colours]]
                # Where nothing follows, a colour can be the name of a thing ("rose"), but not one of a garment.
                end += colours
                continue
            kind = kinds[end]
            if kind == "P" and not (end + 1 < len(tokens) and (kinds[end + 1] in ("N", "A") or tokens[end + 1] in COLOURS)):
                kind = ""
            if not kind:
                break
            words.append(tokens[end])
            if kind == "N":
                last_noun = len(words)
            end += 1
        if last_noun > 0 and not _negated(tokens, place):
            found = words[:last_noun]
            if last_noun == len(words) and end < len(tokens) and tokens[end] == "in":
                after = end + 1 + (end + 1 < len(tokens) and tokens[end + 1] in ("a", "the", "all"))
                colours = _colour_at(tokens, after)
                # "In white cotton" says more than the colour.
                if colours and (after + colours >= len(tokens) or kinds[after + colours] not in ("N", "A")):
                    found = [*("and" if word == "&" else word for word in tokens[after : after + colours]), *found]
                    end = after + colours
            yield found
        place = max(end, place) + 1


def _negated(tokens: Sequence[str], place: int) -> bool:
    while place > 0 and tokens[place - 1] in ("a", "an", "the", "any", "have", "has"):
        place -= 1
    return place > 0 and tokens[place - 1] in NEGATIONS


def units_of(words: Sequence[str], compounds: Container[tuple[str, str]] = ()) -> Units:
    """Groups the words that belong together: colours, parts ("short sleeve"), compounds; the last group is the head."""
    units: list[tuple[str, ...]] = []
    pair = len(words) > 1 and (_singular(words[-2]), _singular(words[-1])) in compounds
    place, last = 0, len(words) - (2 if pair else 1)
    while place < last:
        length = _colour_at(words[:last], place)
        if not length:
            is_part = place + 1 < last and words[place] in PART_QUALITIES and _singular(words[place + 1]) in PART_WORDS
            length = 2 if is_part else 1
        units.append(tuple(words[place : place + length]))
        place += length
    return (*units, tuple(words[last:]))


def find_compounds(phrases: Iterable[Sequence[str]]) -> set[tuple[str, str]]:
    """Pairs whose second word hardly ever stands without the first ("cuff links", "gift set"), in normal form.

    Args:
        phrases: Noun phrases as words.
    """
    before: dict[str, Counter[str]] = {}
    for words in phrases:
        previous = words[-2] if len(words) > 1 else ""
        describes = previous in COLOURS or previous in ADJECTIVES
        before.setdefault(_singular(words[-1]), Counter())["" if describes else _singular(previous)] += 1
    found = set()
    for head, words_before in before.items():
        first, count = words_before.most_common(1)[0]
        if first and count >= COMPOUND_COUNT and count >= COMPOUND_SHARE * words_before.total():
            found.add((first, head))
    return found


def wider_phrases(units: Units) -> list[Units]:
    """A phrase and what it is a kind of by leaving modifiers out: without the first ones, and the head with one each."""
    *modifiers, head = units
    found = [units[start:] for start in range(len(units))]
    found += [(modifier, head) for modifier in modifiers]
    return list(dict.fromkeys(found))


@lru_cache(maxsize=100_000)
def _singular(word: str) -> str:
    word = SAME_WORD.get(word, word)
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is", "as")):
        if word.endswith("ies"):
            word = word[:-3] + "y"
        elif word.endswith(("sses", "shes", "ches", "xes", "zzes")):
            word = word[:-2]
        else:
            word = word[:-1]
    if word.endswith("ie") and len(word) > 4:
        word = word[:-2] + "y"
    return SAME_WORD.get(word, word)


def normal_form(phrase: str | Sequence[str]) -> str:
    """What equal phrases have in common: singular words in one spelling, without articles."""
    words = tokens_of(phrase) if isinstance(phrase, str) else phrase
    return " ".join(_singular(word) for word in words if word not in ("a", "an", "the"))


@dataclass(frozen=True)
class MinedConcepts:
    """What `mine_concepts` found.

    Attributes:
        vocabulary: The concepts, the most frequent first, with their fathers.
        phrases: For each caption its concepts, those of narrow meaning before wider ones of the same noun phrase.
        match_phrases: For each caption those of them that the second vocabulary has.
        counts: Concept -> number of captions with it.
    """

    vocabulary: ConceptVocabulary
    phrases: list[tuple[str, ...]]
    match_phrases: list[tuple[str, ...]]
    counts: dict[str, int]


def phrases_of(phrases: Iterable[Sequence[str]], max_words: int = MAX_WORDS, compounds: Container[tuple[str, str]] = ()) -> list[Units]:
    """All phrases that can become concepts: noun phrases (as words) of a caption, and the wider ones in them, each once."""
    found: dict[Units, None] = {}
    for words in phrases:
        head = words[-1]
        if _singular(head) in EMPTY_HEADS or head in EMPTY_HEADS or len(head) < 2 or head.isdigit():
            continue
        for wider in wider_phrases(units_of(words, compounds)):
            if len(" ".join(_words(wider)).split()) <= max_words:
                found[wider] = None
    return list(found)


def _words(units: Units) -> list[str]:
    return [word for unit in units for word in unit]


def find_father(units: Units, known: dict[str, int]) -> str:
    """The normal form of the longest known phrase with the same head that `units` contains; the more frequent one of several; or "".

    Args:
        units: The phrase.
        known: Normal form -> count.
    """
    choices: list[list[tuple[str, ...]]] = []
    for unit in units[:-1]:
        # A "navy blue skirt" is a "blue skirt" as well.
        shorter = [unit[1:]] if len(unit) == 2 and unit[0] in SHADES and unit[1] in COLOURS else []
        choices.append([unit, *shorter, ()])
    own = normal_form(_words(units))
    best: tuple[int, int, str] | None = None
    for chosen in itertools.product(*choices):
        words = [word for unit in chosen for word in unit] + list(units[-1])
        form = normal_form(words)
        if form == own or form not in known:
            continue
        candidate = (-len(words), -known[form], form)
        best = candidate if best is None else min(best, candidate)
    return best[2] if best else ""


def mine_concepts(
    captions: Iterable[str],
    tagger: str | Tagger = "auto",
    min_count: int = 2,
    max_words: int = MAX_WORDS,
    max_concepts: int | None = None,
    kb: ConceptVocabulary | None = None,
    progress: bool = False,
) -> MinedConcepts:
    """Finds the concepts of captions.

    Args:
        captions: The texts.
        tagger: Name of a tagger (see `make_tagger`), or a function from tokens to Penn Treebank tags.
        min_count: In how many captions a phrase has to occur.
        max_words: How many words a phrase may have, from 1.
        max_concepts: Keeps only the most frequent ones.
        kb: A second vocabulary, for `match_phrases`. Concepts that it has take its wording.
        progress: Show a progress bar.

    Returns:
        The vocabulary, and the phrases of each caption. Equal captions give equal results, on any machine.

    Raises:
        UsageError: a number out of range, an unknown tagger.
        MissingExtraError: see `make_tagger`.
        DataError: no phrase occurs often enough.
    """
    if min_count < 1 or max_words < 1 or (max_concepts is not None and max_concepts < 1):
        raise UsageError(f"Expected numbers from 1, found min_count {min_count}, max_words {max_words}, max_concepts {max_concepts}.")
    tag = make_tagger(tagger) if isinstance(tagger, str) else tagger
    read = []
    for caption in tqdm(captions, "captions", disable=not progress, unit="", mininterval=1):
        tokens = tokens_of(caption)
        read.append(list(noun_phrases(tokens, _kinds(tokens, tag))))
    compounds = find_compounds(words for phrases in read for words in phrases)
    found: list[list[str]] = []
    counts: Counter[str] = Counter()
    wordings: dict[str, Counter[str]] = {}
    examples: dict[str, Units] = {}
    for phrases in read:
        forms: dict[str, None] = {}
        for units in phrases_of(phrases, max_words, compounds):
            words = _words(units)
            form = normal_form(words)
            forms[form] = None
            wordings.setdefault(form, Counter())[" ".join(words)] += 1
            examples.setdefault(form, units)
        counts.update(forms.keys())
        found.append(list(forms))
    kept = {form: n for form, n in counts.items() if n >= min_count}
    if not kept:
        raise DataError(f"No phrase occurs in {min_count} of {len(found)} captions or more. Ask for less with min_count.")
    ranked = sorted(kept, key=lambda form: (-kept[form], form))[:max_concepts]
    known = {form: kept[form] for form in ranked}
    theirs = {normal_form(phrase): phrase for phrase in reversed(kb.phrases)} if kb is not None else {}
    names = {form: theirs.get(form) or _best_wording(wordings[form]) for form in ranked}
    fathers = {names[form]: names[father] for form in ranked if (father := find_father(examples[form], known))}
    phrases_found = [tuple(names[form] for form in forms if form in known) for forms in found]
    matched = [tuple(names[form] for form in forms if form in known and form in theirs) for forms in found]
    vocabulary = ConceptVocabulary.of((names[form] for form in ranked), fathers)
    return MinedConcepts(vocabulary, phrases_found, matched, {names[form]: known[form] for form in ranked})


def _best_wording(wordings: Counter[str]) -> str:
    return min(wordings, key=lambda wording: (-wordings[wording], len(wording), wording))


def read_captions(source: str | Path, column: str | None = None, split: str = "train") -> list[TextRecord]:
    """Texts from a dataset, a `.jsonl` file or a CSV file.

    Args:
        source: Folder of a dataset of pictures and texts, or a file.
        column: Key or column of the texts; default: the first of query_text, description, text, caption, title, name.
        split: Split of a dataset.

    Returns:
        The texts with ids. `item_ids` is empty where a file does not say which picture a text belongs to.

    Raises:
        UsageError: no such file, column or split.
        DataError: a broken file; no texts.
    """
    source = Path(source)
    if source.is_dir():
        return open_image_text(source).records(split)
    if not source.is_file():
        raise UsageError(f"{source}: expected a folder of a dataset, a .jsonl file or a .csv file, found nothing there.")
    rows: Iterable[tuple[int, dict[str, Any]]]
    if source.suffix.lower() == ".jsonl":
        rows = list(read_lines(source))
        columns = list(dict.fromkeys(key for _, row in rows for key in row))
    else:
        table = read_table(source)
        columns = table.columns
        rows = [(line, dict(zip(columns, values, strict=True))) for line, values in table.rows]
    chosen = column or next((name for name in _TEXT_KEYS if name in columns), None)
    if chosen not in columns:
        raise UsageError(f"{source}: no column {column or ' or '.join(_TEXT_KEYS)}. Found: {', '.join(columns) or 'none'}.")
    id_column = next((name for name in ID_COLUMNS if name in columns), None)
    records = []
    for number, (line, row) in enumerate(rows):
        text = row.get(chosen)
        if not isinstance(text, str) or not text.strip():
            continue
        items = row.get("item_ids")
        ids = tuple(map(str, items)) if isinstance(items, list) else (str(row[id_column]),) if id_column and row.get(id_column) else ()
        query_id = row.get("query_id", number)
        if not isinstance(query_id, int) or isinstance(query_id, bool):
            raise DataError(f"{source}, line {line}: expected a whole number as 'query_id', found {query_id!r}.")
        records.append(TextRecord(query_id, text, ids))
    if not records:
        raise DataError(f"{source}: no texts in {chosen!r}.")
    return records


def write_mined(folder: str | Path, records: Sequence[TextRecord], mined: MinedConcepts, name: str = "mined") -> list[Path]:
    """Writes the three files that `FashionGen` reads: texts with phrases, concepts, and their fathers.

    Args:
        folder: Where to; made if it does not exist.
        records: The texts that were mined, in the same order.
        mined: What was found in them.
        name: First part of the file names.

    Returns:
        The files. The texts are written only if each belongs to a picture.

    Raises:
        UsageError: the folder cannot be written; another number of texts.
    """
    if len(records) != len(mined.phrases):
        raise UsageError(f"Expected the {len(mined.phrases)} texts that were mined, found {len(records)}.")
    out = make_out_folder(folder)
    concepts, fathers = out / f"{name}_concepts_queries.jsonl", out / f"{name}_concepts_fathers.jsonl"
    mined.vocabulary.write(concepts, fathers)
    written = [concepts, fathers]
    if all(record.item_ids for record in records):
        texts = out / f"{name}_train_queries_phrases.jsonl"
        lines = (
            {
                "query_id": record.query_id,
                "query_text": record.text,
                "item_ids": list(record.item_ids),
                "phrases": list(phrases),
                "match_phrases": list(matched),
            }
            for record, phrases, matched in zip(records, mined.phrases, mined.match_phrases, strict=True)
        )
        write_lines(texts, lines)
        written.insert(0, texts)
    return written
