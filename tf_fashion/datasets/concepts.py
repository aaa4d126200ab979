"""Concepts: phrases of captions, the prompts that stand for them, and what each is a kind of (its father).

    PREFIX_concepts_queries.jsonl   {"query_id": 15, "query_text": "a photo of woman sunglasses", "phrase": "woman sunglasses"}
    PREFIX_concepts_fathers.jsonl   {"query_id": 15, "phrase": "woman sunglasses", "phrase_father": "sunglasses"}

A caption takes part in concept-level alignment with a fixed number of slots. `data_concepts` and `matched_concepts` say which of its
phrases count, `select_concepts` fills the slots, and `concept_slots` does all of it for a caption.

Paper: FashionKLIP (ACL 2023, Industry Track).
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tf_fashion.core.errors import UsageError
from tf_fashion.datasets.json_lines import field_problem, read_lines, write_lines
from tf_fashion.datasets.records import OnProblem, Problem, raise_errors

PROMPT = "a photo of {}"
SLOTS = 5
NO_CONCEPT = -1
"""The id of an empty slot, and of a phrase that the vocabulary does not have."""


class ConceptVocabulary:
    """Phrases with ids, prompts and fathers.

    Args:
        ids: Phrase -> id, a whole number from 0; no id twice.
        fathers: Phrase -> what it is a kind of; phrases without one may be absent or have "". Fathers, and phrases that have one,
            need not be in the vocabulary.
        prompts: Phrase -> the text that the text encoder sees; default "a photo of PHRASE".

    Raises:
        UsageError: an id that is negative, no whole number, or used twice; prompts of unknown phrases.
    """

    def __init__(
        self, ids: Mapping[str, int], fathers: Mapping[str, str] | None = None, prompts: Mapping[str, str] | None = None
    ) -> None:
        self._ids = dict(ids)
        for phrase, number in self._ids.items():
            if not isinstance(number, int) or isinstance(number, bool) or number < 0:
                raise UsageError(f"Expected a whole number from 0 as id of the concept {phrase!r}, found {number!r}.")
        self._phrases = {number: phrase for phrase, number in self._ids.items()}
        if len(self._phrases) != len(self._ids):
            first, second = next((p, self._phrases[n]) for p, n in self._ids.items() if self._phrases[n] != p)
            raise UsageError(f"The concepts {first!r} and {second!r} have the same id {self._ids[first]}; ids must differ.")
        self.fathers = {phrase: father for phrase, father in (fathers or {}).items() if father}
        self._prompts = dict(prompts or {})
        unknown = [phrase for phrase in self._prompts if phrase not in self._ids]
        if unknown:
            raise UsageError(f"There are prompts for phrases that are no concepts, such as {unknown[0]!r}.")

    @classmethod
    def of(cls, phrases: Iterable[str], fathers: Mapping[str, str] | None = None) -> ConceptVocabulary:
        """A vocabulary with the ids 0, 1, ... in the order of `phrases`."""
        return cls({phrase: number for number, phrase in enumerate(dict.fromkeys(phrases))}, fathers)

    @property
    def phrases(self) -> list[str]:
        """All phrases, in file order."""
        return list(self._ids)

    @property
    def ids(self) -> list[int]:
        """Their ids, in the same order."""
        return list(self._ids.values())

    @property
    def prompts(self) -> list[str]:
        """Their prompts, in the same order."""
        return [self.prompt(phrase) for phrase in self._ids]

    def id(self, phrase: str) -> int:
        """The id of a phrase, or -1."""
        return self._ids.get(phrase, NO_CONCEPT)

    def phrase(self, number: int) -> str:
        """The phrase of an id, or "" for -1.

        Raises:
            UsageError: no such id.
        """
        if number == NO_CONCEPT:
            return ""
        try:
            return self._phrases[number]
        except KeyError:
            raise UsageError(f"There is no concept with the id {number}.") from None

    def prompt(self, phrase: str) -> str:
        """The prompt of a phrase; "a photo of " for ""."""
        return self._prompts.get(phrase) or PROMPT.format(phrase)

    def father(self, phrase: str) -> str:
        """What a phrase is a kind of, or ""."""
        return self.fathers.get(phrase, "")

    def __contains__(self, phrase: object) -> bool:
        return phrase in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def __repr__(self) -> str:
        return f"ConceptVocabulary({len(self)} concepts, {len(self.fathers)} with a father)"

    @classmethod
    def read(cls, concepts: Path, fathers: Path | None = None, on_problem: OnProblem = raise_errors) -> ConceptVocabulary:
        """Reads the published files. Of several lines with one phrase the last counts, as in the original.

        Args:
            concepts: `..._concepts_queries.jsonl`.
            fathers: `..._concepts_fathers.jsonl`, if there is one.
            on_problem: What to do about each bad line.

        Raises:
            DataError: (with the default `on_problem`) a bad line; two phrases with one id; the message has file and line.
        """
        ids: dict[str, int] = {}
        prompts: dict[str, str] = {}
        lines: dict[str, int] = {}
        for number, record in read_lines(Path(concepts), on_problem):
            where = f"{concepts}, line {number}"
            problem = field_problem(record, {"query_id": int, "query_text": str, "phrase": str}, where)
            if problem is None and record["query_id"] < 0:
                problem = Problem("error", where, f"expected an id from 0, found {record['query_id']}.", "", "bad value")
            if problem is not None:
                on_problem(problem)
                continue
            phrase = record["phrase"]
            ids[phrase], prompts[phrase], lines[phrase] = record["query_id"], record["query_text"], number
        owners: dict[int, str] = {}
        for phrase, concept_id in list(ids.items()):
            other = owners.setdefault(concept_id, phrase)
            if other != phrase:
                what = f"the id {concept_id} of {phrase!r} is that of {other!r} too (line {lines[other]})."
                on_problem(Problem("error", f"{concepts}, line {lines[phrase]}", what, "Ids must differ.", "duplicate id"))
                del ids[phrase], prompts[phrase]
        return cls(ids, read_fathers(fathers, on_problem) if fathers is not None else None, prompts)

    def write(self, concepts: Path, fathers: Path | None = None) -> None:
        """Writes the published files; reading them gives this vocabulary again.

        Phrases that have a father without being concepts come last in the file of fathers, with the ids that follow the largest.
        """
        write_lines(concepts, ({"query_id": n, "query_text": self.prompt(p), "phrase": p} for p, n in self._ids.items()))
        if fathers is not None:
            first = max(self._ids.values(), default=-1) + 1
            others = {phrase: first + place for place, phrase in enumerate(p for p in self.fathers if p not in self._ids)}
            entries = (self._ids | others).items()
            write_lines(fathers, ({"query_id": n, "phrase": p, "phrase_father": self.father(p)} for p, n in entries))


def read_fathers(path: Path, on_problem: OnProblem = raise_errors) -> dict[str, str]:
    """Phrase -> father ("" for none) of a file of fathers. Of several lines with one phrase the last counts.

    Raises:
        DataError: (with the default `on_problem`) a bad line, with file and line number.
    """
    fathers: dict[str, str] = {}
    for number, record in read_lines(Path(path), on_problem):
        problem = field_problem(record, {"query_id": int, "phrase": str, "phrase_father": str}, f"{path}, line {number}")
        if problem is None:
            fathers[record["phrase"]] = record["phrase_father"]
        else:
            on_problem(problem)
    return fathers


def data_concepts(
    phrases: Sequence[str],
    match_phrases: Collection[str],
    vocabulary: Container[str],
    min_words: int = 2,
    max_words: int = 6,
    exclude_matched: bool = True,
) -> list[str]:
    """The phrases of a caption that are concepts of its own data set, in order.

    Args:
        phrases: All phrases of the caption.
        match_phrases: Those that a knowledge base knows.
        vocabulary: The concepts of the data set.
        min_words, max_words: How many words a phrase may have.
        exclude_matched: Leaves `match_phrases` to the knowledge base, as the original does.
    """
    left_out = set(match_phrases) if exclude_matched else set()
    return [p for p in phrases if min_words <= len(p.split()) <= max_words and p in vocabulary and p not in left_out]


def matched_concepts(match_phrases: Sequence[str], vocabulary: Container[str], min_characters: int = 2) -> list[str]:
    """The phrases of a caption that are concepts of a knowledge base, in order.

    With the data set's own vocabulary these are the concepts of training with a single vocabulary.
    """
    return [p for p in match_phrases if len(p) >= min_characters and p in vocabulary]


def select_concepts(
    concepts: Sequence[str],
    fathers: Mapping[str, str],
    slots: int = SLOTS,
    original_selection: bool = False,
    known: Container[str] | None = None,
) -> tuple[str, ...]:
    """Fills the concept slots of a caption: its concepts, then their fathers, then the fathers of those, while there is room.

    The result depends on the arguments alone; nothing occurs twice, and the order is that of first sight.

    Args:
        concepts: The concepts of the caption.
        fathers: Phrase -> father; absent or "" for none.
        slots: Number of slots.
        original_selection: The released rule: fathers are added only if all of them leave a slot empty, grandfathers never. Its
            order depends on Python's hash seed; here it is that of first sight. Its lists also grow from epoch to epoch; these
            do not.
        known: A vocabulary. Fathers outside it are passed over, since their slot would stay empty. None takes all of them.

    Returns:
        `slots` phrases; "" for each slot that stays empty.

    Raises:
        UsageError: `slots` is less than 1.
    """
    if slots < 1:
        raise UsageError(f"Expected at least one concept slot, found {slots}.")
    parents = _fathers_of(concepts, fathers)
    if original_selection:
        chosen = list(concepts)
        if len(chosen) + len(parents) < slots:
            chosen = list(dict.fromkeys([*chosen, *parents]))
    else:
        more = [*parents, *_fathers_of(parents, fathers)]
        chosen = list(dict.fromkeys([*concepts, *(phrase for phrase in more if known is None or phrase in known)]))
    return (*chosen[:slots], *[""] * (slots - len(chosen)))


def _fathers_of(phrases: Iterable[str], fathers: Mapping[str, str]) -> list[str]:
    return list(dict.fromkeys(father for phrase in phrases if (father := fathers.get(phrase, ""))))


@dataclass(frozen=True)
class ConceptSlots:
    """The concepts of one caption.

    Attributes:
        phrases: One per slot, "" where a slot is empty.
        ids: Their ids in the vocabulary, -1 for "" and for fathers that it lacks.
    """

    phrases: tuple[str, ...]
    ids: tuple[int, ...]

    @classmethod
    def of(cls, phrases: Sequence[str], vocabulary: ConceptVocabulary | None) -> ConceptSlots:
        """Looks up the ids of phrases."""
        return cls(tuple(phrases), tuple(NO_CONCEPT if vocabulary is None else vocabulary.id(phrase) for phrase in phrases))


def concept_slots(
    phrases: Sequence[str],
    match_phrases: Sequence[str],
    data: ConceptVocabulary | None,
    kb: ConceptVocabulary | None = None,
    slots: int = SLOTS,
    original_selection: bool = False,
    swap_father_maps: bool = False,
    exclude_matched: bool = True,
    skip_unknown_fathers: bool = False,
) -> tuple[ConceptSlots, ConceptSlots]:
    """The concepts of a caption from both vocabularies.

    Args:
        phrases, match_phrases: Of the caption, as its data set has them.
        data: Concepts of the data set, or None.
        kb: Concepts of a knowledge base, or None.
        slots: Number of slots for each of the two.
        original_selection: See `select_concepts`.
        swap_father_maps: Takes the fathers of each vocabulary's concepts from the other one, as the released program does by mistake.
        exclude_matched: See `data_concepts`.
        skip_unknown_fathers: Passes over fathers that the vocabulary lacks (see `known` of `select_concepts`).

    Returns:
        The slots of the data set's concepts, and those of the knowledge base.
    """
    own = [] if data is None else data_concepts(phrases, match_phrases, data, exclude_matched=exclude_matched)
    known = [] if kb is None else matched_concepts(match_phrases, kb)
    maps = [{} if vocabulary is None else vocabulary.fathers for vocabulary in ((kb, data) if swap_father_maps else (data, kb))]
    found = []
    for concepts, vocabulary, fathers in zip((own, known), (data, kb), maps, strict=True):
        among = vocabulary if skip_unknown_fathers else None
        found.append(ConceptSlots.of(select_concepts(concepts, fathers, slots, original_selection, among), vocabulary))
    return found[0], found[1]


def slot_ids(slots: Sequence[ConceptSlots]) -> np.ndarray:
    """The ids of many captions: int32 (captions, slots)."""
    return np.array([entry.ids for entry in slots], np.int32).reshape(len(slots), -1)


def vocabulary_summary(vocabulary: ConceptVocabulary) -> dict[str, Any]:
    """Counts that a report shows: concepts, those with a father, roots, and the longest chain of fathers (cut at 100)."""
    depth = 0
    for phrase in vocabulary.phrases:
        steps, seen = 0, {phrase}
        while (phrase := vocabulary.father(phrase)) and phrase not in seen and steps < 100:
            seen.add(phrase)
            steps += 1
        depth = max(depth, steps)
    with_father = sum(bool(vocabulary.father(phrase)) for phrase in vocabulary.phrases)
    return {"concepts": len(vocabulary), "with_father": with_father, "roots": len(vocabulary) - with_father, "depth": depth}
