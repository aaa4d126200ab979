"""Concepts: vocabularies in the published files, what a caption's slots hold, and mining them from captions."""

import json

import numpy as np
import pytest

from tests.shared import shared
from tf_fashion.cli import main
from tf_fashion.core.errors import DataError, MissingExtraError, UsageError
from tf_fashion.datasets import ConceptVocabulary, FashionGen
from tf_fashion.datasets import concept_mining as mining
from tf_fashion.datasets.concepts import concept_slots, data_concepts, matched_concepts, select_concepts, slot_ids, vocabulary_summary

FATHERS = {"red wool coat": "wool coat", "wool coat": "coat", "coat": "outerwear", "blue jeans": "jeans", "jeans": "trousers"}


def test_files_are_written_as_published(tmp_path):
    vocabulary = ConceptVocabulary({"coat": 3, "wool coat": 7, "café": 1}, {"wool coat": "coat", "coat": "", "coats": "coat"})
    vocabulary.write(tmp_path / "c.jsonl", tmp_path / "f.jsonl")
    assert (tmp_path / "c.jsonl").read_text("utf-8").splitlines() == [
        '{"query_id": 3, "query_text": "a photo of coat", "phrase": "coat"}',
        '{"query_id": 7, "query_text": "a photo of wool coat", "phrase": "wool coat"}',
        '{"query_id": 1, "query_text": "a photo of café", "phrase": "café"}',
    ]
    lines = (tmp_path / "f.jsonl").read_text("utf-8").splitlines()
    assert lines[1] == '{"query_id": 7, "phrase": "wool coat", "phrase_father": "coat"}'
    assert lines[3] == '{"query_id": 8, "phrase": "coats", "phrase_father": "coat"}'
    again = ConceptVocabulary.read(tmp_path / "c.jsonl", tmp_path / "f.jsonl")
    assert (again.phrases, again.ids, again.fathers) == (vocabulary.phrases, [3, 7, 1], {"wool coat": "coat", "coats": "coat"})
    assert again.prompts == vocabulary.prompts and again.phrase(7) == "wool coat" and again.phrase(-1) == ""
    assert again.id("nothing") == -1 and again.prompt("") == "a photo of "
    assert vocabulary_summary(again) == {"concepts": 3, "with_father": 1, "roots": 2, "depth": 1}


def test_published_files_survive(tmp_path):
    folder = shared("data/products/fashion_gen")
    names = [folder / "train" / f"fashion-gen_concepts_{kind}.jsonl" for kind in ("queries", "fathers")]
    ConceptVocabulary.read(*names).write(tmp_path / "c", tmp_path / "f")
    assert [(tmp_path / name).read_bytes() for name in "cf"] == [path.read_bytes() for path in names]


def test_bad_vocabularies(tmp_path):
    path = tmp_path / "c.jsonl"

    def read(*lines):
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return ConceptVocabulary.read(path)

    def line(number, phrase, prompt="p"):
        return {"query_id": number, "query_text": prompt, "phrase": phrase}

    later = read(line(1, "a"), line(2, "b"), line(5, "a", "q"))
    assert later.ids == [5, 2] and later.prompts == ["q", "p"]
    for bad, message in (
        ([line(1, "a"), "{"], "line 2: expected a JSON object"),
        ([line("1", "a")], "line 1: expected a whole number as 'query_id'"),
        ([line(True, "a")], "whole number"),
        ([line(-1, "a")], "from 0"),
        ([{"query_id": 1, "query_text": "p"}], "the key 'phrase'"),
        ([line(1, "a"), line(1, "b")], "line 2: the id 1 of 'b' is that of 'a' too"),
    ):
        with pytest.raises(DataError, match=message):
            read(*bad)
    with pytest.raises(UsageError, match="same id"):
        ConceptVocabulary({"a": 1, "b": 1})
    with pytest.raises(DataError, match="cannot be read"):
        ConceptVocabulary.read(tmp_path / "none.jsonl")


def test_which_phrases_count():
    phrases = ["wool coat", "coat", "a very long phrase of seven words", "unknown thing", "red coat", "wool coat"]
    vocabulary = set(phrases) - {"unknown thing"}
    assert data_concepts(phrases, ["red coat"], vocabulary) == ["wool coat", "wool coat"]
    assert data_concepts(phrases, ["red coat"], vocabulary, exclude_matched=False) == ["wool coat", "red coat", "wool coat"]
    assert matched_concepts(["x", "coat", "scarf"], {"x", "coat"}) == ["coat"]


def test_slots_are_filled_in_order():
    assert select_concepts(["red wool coat", "blue jeans", "red wool coat"], FATHERS) == (
        "red wool coat",
        "blue jeans",
        "wool coat",
        "jeans",
        "coat",
    )
    assert select_concepts(["blue jeans"], FATHERS) == ("blue jeans", "jeans", "trousers", "", "")
    assert select_concepts(["blue jeans"], FATHERS, slots=3, known={"trousers"}) == ("blue jeans", "trousers", "")
    assert select_concepts([], FATHERS, slots=2) == ("", "")
    assert select_concepts(["a", "b", "c"], {"a": "b", "b": "a"}, slots=2) == ("a", "b")
    with pytest.raises(UsageError):
        select_concepts([], {}, slots=0)


def test_the_original_selection_adds_all_fathers_or_none():
    def original(*concepts):
        return select_concepts(concepts, FATHERS, original_selection=True)

    assert original("blue jeans") == ("blue jeans", "jeans", "", "", "")
    assert original("a", "b", "blue jeans") == ("a", "b", "blue jeans", "jeans", "")
    assert original("a", "b", "c", "blue jeans") == ("a", "b", "c", "blue jeans", "")
    assert original(*"abcdef") == tuple("abcde")


def test_slots_of_a_caption():
    data = ConceptVocabulary({"wool coat": 4, "blue jeans": 5}, {"wool coat": "coat"})
    kb = ConceptVocabulary({"coat": 9}, {"coat": "outerwear", "wool coat": "thing"})
    caption = (["wool coat", "blue jeans", "coat"], ["coat"], data, kb)
    own, known = concept_slots(*caption)
    assert own.phrases == ("wool coat", "blue jeans", "coat", "", "") and own.ids == (4, 5, -1, -1, -1)
    assert known.phrases[:2] == ("coat", "outerwear") and known.ids == (9, -1, -1, -1, -1)
    own, known = concept_slots(*caption, swap_father_maps=True)
    assert own.phrases[2] == "thing" and known.phrases == ("coat", "", "", "", "")
    assert concept_slots(*caption, slots=2, skip_unknown_fathers=True)[1].phrases == ("coat", "")
    ids = slot_ids([own, known])
    assert ids.dtype == np.int32 and ids.shape == (2, 5)
    assert concept_slots(["wool coat"], [], data)[1].ids == (-1,) * 5


WORDS = {"with": "IN", "and": "CC", "in": "IN", "is": "VBZ", "a": "DT", "the": "DT", "knitted": "VBN", "by": "IN", "for": "IN"}


def tag(tokens):
    return [WORDS.get(token, "NN" if token[0].isalnum() else ".") for token in tokens]


def found(caption):
    tokens = mining.tokens_of(caption)
    phrases = mining.noun_phrases(tokens, mining._kinds(tokens, tag))
    return [" ".join(word for unit in units for word in unit) for units in mining.phrases_of(phrases)]


def test_phrases_of_a_caption():
    assert found("A long black wool coat.") == [
        "long black wool coat",
        "black wool coat",
        "wool coat",
        "coat",
        "long coat",
        "black coat",
    ]
    assert found("black and white dress") == ["black and white dress", "dress"]
    assert found("The skirt in navy blue is knitted by hand")[:2] == ["navy blue skirt", "skirt"]
    assert found("short sleeve t shirt with flip-flops") == ["short sleeve t-shirt", "t-shirt", "flip-flops"]
    assert found("women's dresses, in white cotton") == ["women dresses", "dresses", "white cotton", "cotton"]
    assert found("a dress with no sleeves and without a belt") == ["dress"]
    assert found("casual look, red colour, 42") == [] and found("") == [] and found("...") == []
    assert found("bluer and with longer sleeves") == ["sleeves"]


def test_equal_phrases_have_one_form():
    for one, other in (
        ("Dresses", "dress"),
        ("mens shirts", "man shirt"),
        ("hoodies", "hoodie"),
        ("t shirt", "tshirts"),
        ("scarves", "scarf"),
    ):
        assert mining.normal_form(one) == mining.normal_form(other)
    assert mining.normal_form("dress") == "dress" and mining.normal_form("sleeveless") == "sleeveless"


def test_mining_names_counts_and_fathers():
    captions = [
        "red wool coat",
        "Red wool coats and boots",
        "a wool coat",
        "coat",
        "boot",
        "coat dress",
        "coat dress",
        "a dress",
        "dress",
    ]
    mined = mining.mine_concepts(captions, tag, kb=ConceptVocabulary({"wool coat": 3, "Boots": 1}))
    assert mined.counts == {"coat": 4, "dress": 4, "wool coat": 3, "Boots": 2, "coat dress": 2, "red coat": 2, "red wool coat": 2}
    father = mined.vocabulary.father
    assert (father("red wool coat"), father("wool coat"), father("coat dress"), father("coat")) == ("wool coat", "coat", "dress", "")
    assert mined.phrases[0] == ("red wool coat", "wool coat", "coat", "red coat") and mined.match_phrases[0] == ("wool coat",)
    assert mined.match_phrases[1] == ("wool coat", "Boots") and mined.vocabulary.ids == list(range(7))
    again = mining.mine_concepts(captions, tag, max_concepts=2, max_words=1)
    assert again.vocabulary.phrases == ["coat", "dress"]
    with pytest.raises(DataError, match="No phrase occurs in 9"):
        mining.mine_concepts(captions, tag, min_count=9)
    with pytest.raises(UsageError, match="from 1"):
        mining.mine_concepts(captions, tag, min_count=0)


def test_no_phrase_is_its_own_forefather():
    pieces = [["red", "blue", "dark blue", "black and white"], ["wool", "short sleeve", "cotton"], ["coat", "coat dress", "dress"]]
    captions = [" ".join((a, b, c)) for a in pieces[0] for b in pieces[1] for c in pieces[2]] * 2
    vocabulary = mining.mine_concepts(captions, tag).vocabulary
    assert vocabulary.father("dark blue dress") == "blue dress" and vocabulary.father("black and white dress") == "dress"
    for phrase in vocabulary.phrases:
        seen = [phrase]
        while vocabulary.father(seen[-1]):
            seen.append(vocabulary.father(seen[-1]))
            assert len(seen) < 10 and seen[-1].split()[-1] == phrase.split()[-1]


def test_words_that_only_stand_together():
    captions = ["silver cuff links", "cuff links", "gold cuff links", "wool coat", "rain coat"] * 4
    vocabulary = mining.mine_concepts(captions, tag).vocabulary
    assert vocabulary.father("silver cuff links") == "cuff links" and vocabulary.father("cuff links") == ""
    assert "links" not in vocabulary and "silver links" not in vocabulary and vocabulary.father("rain coat") == "coat"


def test_mining_by_command(tmp_path, capsys):
    pytest.importorskip("textblob")
    (tmp_path / "shop.csv").write_text(
        'id,description\n1,"colour yellow; men\'s t shirt; sports wear."\n2,"Designed for ladies, this white skirt is meant for you."\n'
        "3,a white skirt\n4,mens t-shirt in white\n5,a yellow t-shirt with short sleeves\n"
    )
    (tmp_path / "kb.jsonl").write_text('{"query_id": 0, "query_text": "a photo of skirt", "phrase": "skirt"}\n')
    out = tmp_path / "out"
    assert main(["concepts", "mine", str(tmp_path / "shop.csv"), "--kb", str(tmp_path / "kb.jsonl"), "--out", str(out), "--quiet"]) == 0
    assert "4 concepts, 2 with a father, in 5 of 5 texts" in capsys.readouterr().out
    dataset = FashionGen(out)
    pairs = dataset.pairs("train")
    assert pairs[1].phrases == ("white skirt", "skirt") and pairs[1].match_phrases == ("skirt",) and pairs[1].image_id == "2"
    assert dataset.concepts.father("white skirt") == "skirt"
    (tmp_path / "lines.jsonl").write_text('{"text": "red dress"}\n{"text": "red dress"}\n')
    assert main(["concepts", "mine", str(tmp_path / "lines.jsonl"), "--out", str(tmp_path / "two"), "--quiet"]) == 0
    assert "The texts are not written" in capsys.readouterr().out and not list((tmp_path / "two").glob("*train*"))
    assert main(["concepts", "mine", str(tmp_path / "shop.csv"), "--column", "words", "--out", str(out)]) == 2


def test_without_a_tagger(monkeypatch):
    mining.make_tagger.cache_clear()
    monkeypatch.setattr(mining.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(MissingExtraError, match=r"tf-fashion\[concepts\]"):
        mining.make_tagger()
    with pytest.raises(MissingExtraError, match="spacy"):
        mining.make_tagger("spacy")
    with pytest.raises(UsageError, match="Unknown tagger"):
        mining.make_tagger("best")
    mining.make_tagger.cache_clear()


def test_mining_finds_the_phrases_of_descriptions():
    pytest.importorskip("textblob")
    records = FashionGen(shared("data/products/fashion_gen")).records("train")[:1500]
    mined = mining.mine_concepts((record.text for record in records), min_count=1)
    literal = hits = 0
    for record, phrases in zip(records, mined.phrases, strict=True):
        forms = {mining.normal_form(phrase) for phrase in phrases}
        text = f" {' '.join(mining.tokens_of(record.text))} "
        for phrase in record.phrases:
            if f" {' '.join(mining.tokens_of(phrase))} " in text:
                literal += 1
                hits += mining.normal_form(phrase) in forms
    assert literal > 1500 and hits / literal > 0.97
