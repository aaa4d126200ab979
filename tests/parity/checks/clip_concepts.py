"""FashionKLIP's phrases and concept slots.

The recorded program changes its lists whenever it looks at a sample, so that later epochs see more hypernyms. Ours does not: in every
epoch it must give what the record has when the lists of a text are seen for the first time. The later visits are compared as well, with
the growth replayed here around `select_concepts`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from tests.parity.harness import Fixture, checks
from tf_fashion.datasets.concepts import SLOTS, ConceptSlots, concept_slots, data_concepts, matched_concepts, select_concepts
from tf_fashion.datasets.fashion_gen import FashionGen
from tf_fashion.datasets.json_lines import write_lines

FILES = {
    "train_lines": "train/fashion-gen_train_queries_phrases.jsonl",
    "data_concepts_queries": "train/fashion-gen_concepts_queries.jsonl",
    "fashion_gen_concepts_fathers": "train/fashion-gen_concepts_fathers.jsonl",
    "kb_concepts_queries": "fashion_kb/icbu_concepts_queries.jsonl",
    "icbu_concepts_fathers": "fashion_kb/icbu_concepts_fathers.jsonl",
}


def _tree(root: Path, recorded: dict[str, Any]) -> FashionGen:
    for key, name in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        write_lines(root / name, recorded[key])
    return FashionGen(root)


def _unordered(slots: ConceptSlots) -> list[tuple[str, int]]:
    return sorted(zip(slots.phrases, slots.ids, strict=True))


def _recorded(entry: dict[str, Any], kind: str) -> ConceptSlots:
    return ConceptSlots(tuple(entry[f"{kind}_phrases"]), tuple(entry[f"{kind}_ids"]))


@checks(r"concept_selection\.json")
def concept_selection(fixture: Fixture) -> None:
    recorded = json.loads(fixture.path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        dataset = _tree(Path(folder), recorded)
        pairs, data, kb = dataset.pairs("train"), dataset.concepts, dataset.kb_concepts
        for vocabulary, key in ((data, "data_concepts_queries"), (kb, "kb_concepts_queries")):
            vocabulary.write(Path(folder) / "again.jsonl")
            lines = (Path(folder) / "again.jsonl").read_text(encoding="utf-8").splitlines()
            fixture.equal(f"{key}, written again", lines, [json.dumps(line, ensure_ascii=False) for line in recorded[key]])
    filtered = [
        {
            "query_id": pair.query_id,
            "query_text": pair.text,
            "image_id": pair.image_id,
            "phrases": data_concepts(pair.phrases, pair.match_phrases, data),
            "match_phrases": matched_concepts(pair.match_phrases, kb),
        }
        for pair in pairs
    ]
    fixture.equal("samples_after_filter", filtered, recorded["samples_after_filter"])

    first = {pair.query_id: place for place, pair in reversed(list(enumerate(pairs)))}
    ours = [concept_slots(pair.phrases, pair.match_phrases, data, kb, original_selection=True, swap_father_maps=True) for pair in pairs]
    for kind, side in (("data", 0), ("kb", 1)):
        for place in first.values():
            expected = _recorded(recorded["epochs"][0][place], kind)
            fixture.equal(f"epochs[0][{place}]/{kind}", _unordered(ours[place][side]), _unordered(expected))
            if "" not in expected.phrases:
                fixture.equal(f"epochs[0][{place}]/{kind}, order", ours[place][side], expected)

    # The lists of a text, which all its pictures share, grow by the fathers of what is in them, whenever those find room.
    for kind, vocabulary, fathers, key in (("data", data, kb.fathers, "phrases"), ("kb", kb, data.fathers, "match_phrases")):
        lists = {entry["query_id"]: list(entry[key]) for entry in recorded["samples_after_filter"]}
        for epoch, samples in enumerate(recorded["epochs"]):
            for place, (pair, sample) in enumerate(zip(pairs, samples, strict=True)):
                shown = lists[pair.query_id]
                slots = ConceptSlots.of(select_concepts(shown, fathers, SLOTS, original_selection=True), vocabulary)
                fixture.equal(f"epochs[{epoch}][{place}]/{kind}, lists grown", _unordered(slots), _unordered(_recorded(sample, kind)))
                more = list(dict.fromkeys(fathers[phrase] for phrase in shown if fathers.get(phrase)))
                if len(shown) + len(more) < SLOTS:
                    shown += more
