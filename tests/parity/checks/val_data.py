"""VAL's data: caption files, triplets, vocabularies, and its evaluation."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tests.parity.harness import Fixture, checks
from tf_fashion.datasets import open_composed
from tf_fashion.datasets.captions import differing_words, replacement_text, spell_out_marks
from tf_fashion.datasets.val_files import gallery_of, ground_truth, parse_line, prepare
from tf_fashion.inputs.glove import glove_table, load_glove
from tf_fashion.inputs.text import WordTokenizer, tokenize
from tf_fashion.reports.tables import val_log
from tf_fashion.retrieval.protocol import evaluate_category, get_protocol
from tf_fashion.retrieval.search import squared_distances


@checks("data")
def data(fixture: Fixture) -> None:
    expected = json.loads((fixture.path / "expected.json").read_text("utf-8"))
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        shutil.copytree(fixture.path / "input", root, dirs_exist_ok=True)
        for line in (fixture.path / "existing_images.txt").read_text("utf-8").split():
            (root / line).parent.mkdir(parents=True, exist_ok=True)
            (root / line).touch()
        out = root / "out"
        for dataset in ("fashion_iq", "shoes"):
            prepare(open_composed(root / "datasets" / dataset), out)
        generated = fixture.path / "generated" / "datasets"
        for path in sorted(generated.rglob("*.txt")):
            ours = out / path.relative_to(generated)
            fixture.equal(f"generated/{path.name}", ours.read_text("utf-8") if ours.is_file() else None, path.read_text("utf-8"))
        _fashion_iq(fixture, out / "fashion_iq", expected["fashion_iq"])
        _shoes(fixture, root / "datasets" / "shoes", out / "shoes", expected["shoes"])
        _fashion200k(fixture, root / "datasets" / "fashion200k", expected["fashion200k"])
    for name, recorded in expected["vocab"].items():
        _vocabulary(fixture, f"vocab/{name}", name, recorded, expected)
    _glove(fixture)


def _compare(fixture: Fixture, where: str, ours: dict[str, Any], recorded: dict[str, Any]) -> None:
    for key, value in recorded.items():
        fixture.equal(f"{where}/{key}", ours.get(key), value)


def _tags(path: Path) -> dict[str, str]:
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return {line.split(";")[0]: spell_out_marks(line.split(";")[1]) for line in lines}


def _pairs(lines: list[str], tags: dict[str, str], prefix: str) -> dict[str, Any]:
    parsed = [parse_line(line) for line in lines]
    sources, targets = ([prefix + pair[index] for pair in parsed] for index in (0, 1))
    texts = [spell_out_marks(pair[2]) for pair in parsed]
    about = [[tags.get(pair[index], "") for pair in parsed] for index in (0, 1)]
    gallery = [prefix + path for path in gallery_of(lines)]
    truth = ground_truth(targets, gallery)
    return {
        "source_files": sources,
        "target_files": targets,
        "modify_texts": texts,
        "all_texts": texts,
        "source_texts": about[0],
        "target_texts": about[1],
        "num_no_tags_s": about[0].count(""),
        "num_no_tags_t": about[1].count(""),
        "max_length": max(len(text.split(" ")) for text in texts),
        "database": gallery,
        "groundtruth_shape": list(truth.shape),
        "groundtruth_index": truth.argmax(axis=1).tolist(),
        "groundtruth_true_per_row": truth.sum(axis=1).tolist(),
        "source_index_in_database": [gallery.index(source) for source in sources],
    }


def _fashion_iq(fixture: Fixture, folder: Path, expected: dict[str, Any]) -> None:
    for key, recorded in expected.items():
        split, category = key.split("/")
        suffix = "" if category == "all" else f"-{category}"
        captions = folder / "captions_pairs" / f"fashion_iq-{'train' if split == 'train' else 'val'}-cap{suffix}.txt"
        tags = _tags(folder / "tags" / f"asin2attr-{split}{suffix}.txt")
        ours = _pairs(captions.read_text("utf-8").splitlines(keepends=True), tags, "datasets/fashion_iq/image_data/")
        _compare(fixture, f"fashion_iq/{key}", ours, recorded)


def _shoes(fixture: Fixture, root: Path, folder: Path, expected: dict[str, Any]) -> None:
    for split, recorded in expected.items():
        lines = (folder / f"shoes-cap-{split}.txt").read_text("utf-8").splitlines(keepends=True)
        tag_file = folder / f"shoes-tag-{split}.txt"
        tags = _tags(tag_file)
        ours = _pairs(lines, tags, "")
        described = [spell_out_marks(line.split(";")[1]) for line in tag_file.read_text("utf-8").splitlines()]
        ours["all_texts"] = [*described, *ours["modify_texts"]]
        if split == "test":
            listed = [line.strip() for line in (root / "shoes-test-all.txt").read_text("utf-8").splitlines()]
            ours["database"] = gallery_of(lines, listed)
            truth = ground_truth(ours["target_files"], ours["database"])
            ours |= {"groundtruth_shape": list(truth.shape), "groundtruth_index": truth.argmax(axis=1).tolist()}
        _compare(fixture, f"shoes/{split}", ours, recorded)


def _fashion200k(fixture: Fixture, root: Path, expected: dict[str, Any]) -> None:
    dataset = open_composed(root)
    images = dataset.labels("train").images
    names, texts = [f"datasets/fashion200k/{image.path}" for image in images], [image.caption for image in images]
    index, recorded = dataset.index, expected["train"]

    def row(source: int, target: int) -> list[Any]:
        return [source, target, *differing_words(texts[source], texts[target]), replacement_text(texts[source], texts[target])]

    drawn = random.Random(recorded["caption_index_sample_each_modifiable_python_random_seed"])
    epoch = index.epoch(random.Random(recorded["random_train_queries_seed"]))
    ours = {
        "filenames": names,
        "texts": texts,
        "all_texts": texts,
        "all_texts_modifiable": [text for text, parents in zip(texts, index.parents, strict=True) if parents],
        "caption2imgids": index.pictures,
        "parent2children_captions": index.children,
        "parent_captions": index.parents,
        "modifiable": [bool(parents) for parents in index.parents],
        "num_modifiable_imgs": len(index.modifiable),
        "caption_index_sample_each_modifiable": [row(source, index.draw_target(source, drawn)) for source in index.modifiable],
        "caption_index_sample_each_modifiable_python_random_seed": recorded["caption_index_sample_each_modifiable_python_random_seed"],
        "random_train_queries_seed": recorded["random_train_queries_seed"],
        "random_train_queries": {
            "source_files": [names[source] for source, _ in epoch],
            "target_files": [names[target] for _, target in epoch],
            "source_texts": [texts[source] for source, _ in epoch],
            "target_texts": [texts[target] for _, target in epoch],
            "modify_texts": [replacement_text(texts[source], texts[target]) for source, target in epoch],
        },
    }
    _compare(fixture, "fashion200k/train", ours, recorded)

    part, recorded = dataset.get("all", "test"), expected["test"]
    files = {image.id: f"datasets/fashion200k/{image.path}" for image in dataset.labels("test").images}
    places = {image_id: place for place, image_id in enumerate(part.gallery)}
    captions = [part.labels[image_id] for image_id in part.gallery]
    truth = ground_truth([part.labels[triplet.target] for triplet in part.triplets], captions)
    ours = {
        "filenames": [files[image_id] for image_id in part.gallery],
        "texts": captions,
        "groundtruth_indices": [np.flatnonzero(line).tolist() for line in truth],
        "groundtruth_shape": list(truth.shape),
        "modify_texts": [triplet.captions[0] for triplet in part.triplets],
        "query_filenames": [files[triplet.reference] for triplet in part.triplets],
        "test_queries": [
            {
                "source_img_id": places[triplet.reference],
                "source_caption": part.labels[triplet.reference],
                "target_caption": part.labels[triplet.target],
                "mod": {"str": triplet.captions[0]},
            }
            for triplet in part.triplets
        ],
    }
    _compare(fixture, "fashion200k/test", ours, recorded)


def _vocabulary(fixture: Fixture, where: str, name: str, recorded: dict[str, Any], expected: dict[str, Any]) -> None:
    dataset, style = name.split("/")
    rules = "treebank" if style == "nltk" else "strip_punct"
    texts = {
        "fashion_iq": lambda: expected["fashion_iq"]["train/all"]["all_texts"],
        "shoes": lambda: expected["shoes"]["train"]["all_texts"],
        "fashion200k": lambda: expected["fashion200k"]["train"]["all_texts"],
    }[dataset]()
    counts = Counter(word for text in texts for word in tokenize(text, rules=rules))
    words = list(counts)
    tokenizer = WordTokenizer(words, specials=["<UNK>"], rules=rules)
    rare = [word for word, count in counts.items() if count < 2]
    pruned = WordTokenizer(words, specials=["<UNK>"], rules=rules, ignored=rare)
    ids = {word: number for number, word in enumerate(tokenizer.vocabulary)}
    probes = recorded["probes"]
    batch_ids, lengths = tokenizer(probes[: len(recorded["batch_ids"])], return_lengths=True)
    ours = {
        "word2id": ids,
        "word2id_after_threshold2": {word: 0 if word in rare else number for word, number in ids.items()},
        "wordcount": {"<UNK>": recorded["wordcount"]["<UNK>"], **counts},
        "size": len(ids),
        "size_after_threshold2": len(pruned.vocabulary),
        "probes": probes,
        "probe_tokens": [tokenizer.tokenize(probe) for probe in probes],
        "probe_ids": tokenizer.ragged(probes).to_list(),
        "probe_ids_after_threshold2": pruned.ragged(probes).to_list(),
        "batch_lengths": lengths.numpy().tolist(),
        "batch_ids": batch_ids.numpy().tolist(),
    }
    _compare(fixture, where, ours, recorded)


def _glove(fixture: Fixture) -> None:
    folder = fixture.path / "glove"
    path = next(folder.glob("*.txt"))
    with np.load(folder / "glove_expected.npz") as archive:
        recorded = {key: archive[key] for key in archive.files}
    for dataset in ("fashion_iq", "shoes", "fashion200k"):
        words = [str(word) for word in recorded[f"{dataset}_known_words"]]
        # Words of the vocabulary that the file lacks are random in the original.
        size = int(recorded[f"{dataset}_shape"][0])
        vocabulary = ["<UNK>", *words, *(f"unknown{number}" for number in range(size - len(words) - 1))]
        table = glove_table(vocabulary, [load_glove(path, vocabulary, progress=False)])
        fixture.equal(f"glove/{dataset}_shape", list(table.shape), recorded[f"{dataset}_shape"].tolist())
        rows = table[1 : len(words) + 1]
        fixture.close(f"glove/{dataset}_known_rows", rows, recorded[f"{dataset}_known_rows"], rtol=1e-6, atol=1e-7)


@checks(r"evaluation\.npz")
def evaluation(fixture: Fixture) -> None:
    # UDMA's recording has this name, too.
    if not any(key.endswith("/groundtruth_mask") for key in fixture.data):
        return
    for tag in dict.fromkeys(key.split("/")[0] for key in fixture.data):
        query, gallery, source, truth = (
            fixture.input(f"{tag}/{key}") for key in ("query_features", "gallery_features", "source_index", "groundtruth_mask")
        )
        fixture.compare(f"{tag}/distances", squared_distances(query, gallery), rtol=0.0, atol=1e-5)
        ids = [str(place) for place in range(len(gallery))]
        # Columns that are right for the same queries carry one label.
        labels = {place: truth[:, int(place)].tobytes().hex() for place in ids}
        others = truth & (np.arange(truth.shape[1]) != source[:, None])
        targets = [str((left if left.any() else row).argmax()) for left, row in zip(others, truth, strict=True)]
        references = [str(place) for place in source]
        protocol = get_protocol("fashion200k" if "fashion200k" in tag else "shoes")
        # A query whose picture is its own target finds it last in the original; we refuse such queries.
        asked = [row for row, (a, b) in enumerate(zip(references, targets, strict=True)) if a != b]
        result = evaluate_category(
            query[asked],
            gallery,
            ids,
            [targets[row] for row in asked],
            [references[row] for row in asked],
            protocol,
            labels=labels if protocol.hit == "any" else None,
        )
        ranks = np.full(len(query), len(gallery) - 1)
        ranks[asked] = result.ranks - 1
        fixture.exact(f"{tag}/first_hit_rank_zero_based", ranks)
        recalls = {k: 100.0 * float(np.mean(ranks < k)) for k in protocol.ks}
        fixture.compare(f"{tag}/recall_1_10_50", list(recalls.values()), rtol=0.0, atol=1e-4)
        line = val_log("features", recalls).splitlines()[1].removeprefix("image retrieval: ").strip()
        fixture.exact(f"{tag}/printed_line", line)
