"""What is written beside the pictures of the drawn wardrobe: the files of the layout of FashionIQ, Fashion200k, Shoes, FashionGen,
iMaterialist, or UDMA's two shops (`wardrobe_street.py`)."""

from __future__ import annotations

import collections
import csv
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tf_fashion.core.files import atomic_write, write_json
from tf_fashion.datasets import fashion200k, shoes
from tf_fashion.datasets.concepts import ConceptVocabulary
from tf_fashion.datasets.json_lines import write_lines
from tf_fashion.datasets.labels import Label, LabelMap
from tf_fashion.datasets.wardrobe_designs import SHARES, Item, generator, line_pairs, wardrobe_lines
from tf_fashion.datasets.wardrobe_garments import ATTRIBUTE_NAMES, COLOURS, KINDS, PATTERNS, Attributes
from tf_fashion.datasets.wardrobe_sentences import description, modification_sentences, tags
from tf_fashion.datasets.wardrobe_street import street_photos, write_street_to_shop
from tf_fashion.datasets.wardrobe_texts import concepts_of, is_common, stated_facts, varied_description

Counts = dict[str, dict[str, dict[str, int]]]

# Fashion200k and Shoes have "train" and "test"; the wardrobe's "val" has the galleries that are worth searching.
SPLIT_NAMES = {"train": "train", "val": "test"}
# The attribute that a caption in Fashion200k's layout names besides colour and print, as one word per value.
_CAPTION_WORDS: dict[str, tuple[str, dict[str, str]]] = {
    "sleeve": ("", {"short": "short-sleeved", "three-quarter": "three-quarter-sleeved", "long": "long-sleeved"}),
    "length": ("", {"knee": "knee-length", "full": "full-length", "hip": "hip-length"}),
    "heel": ("-heeled", {}),
    "sole": ("-soled", {}),
}
_CAPTION_ATTRIBUTE = {"top": "sleeve", "dress": "length", "bottom": "length"}
# Layouts whose "val" is as varied as "train", and which have no queries that need long lines of similar garments.
VARIED_LAYOUTS = ("fashion_gen", "imaterialist")
# The tasks in iMaterialist's layout: number (the competition's where it has the task), and attributes with the words of their labels.
_TASKS: dict[str, tuple[int, dict[str, str]]] = {
    "category": (1, {"kind": "{}"}),
    "color": (2, {"colour": "{}"}),
    "neckline": (5, {"neckline": "{} neck"}),
    "pattern": (6, {"pattern": "{}"}),
    "sleeve": (8, {"sleeve": "{} sleeves"}),
    "style": (9, {"fit": "{} fit", "shape": "{} skirt", "leg": "{} legs", "collar": "{} collar"}),
    "length": (10, {"length": "{} length"}),
    "print color": (11, {"second": "{}"}),
    "detail": (12, {name: name for name in ("belt", "pocket", "turn-ups", "pleats", "strap", "bow")}),
    "shoe": (13, {"sole": "{} sole", "heel": "{} heel", "shaft": "{} shaft", "closure": "{}", "toe": "{} toe"}),
}
# Share of the pictures that have a description in Shoes' layout.
_DESCRIBED = 1 / 3


def lines_of(arguments: dict[str, Any]) -> Iterator[list[Item]]:
    """The garments of a wardrobe, line by line."""
    layout = arguments.get("layout", "fashion_iq")
    if layout == "street_to_shop":
        return iter([[*street_photos(arguments)]])
    categories, splits = tuple(arguments["categories"]), tuple(arguments["splits"])
    return wardrobe_lines(arguments["items"], arguments["seed"], categories, splits, shares_of(layout), layout not in VARIED_LAYOUTS)


def shares_of(layout: str) -> Mapping[str, float]:
    """Parts of the garments that go to each split."""
    return {"train": 5.0, "val": 1.0} if layout in VARIED_LAYOUTS else SHARES


def write_fashion_iq(root: Path, arguments: dict[str, Any]) -> Counts:
    """FashionIQ's layout. Returns category -> split -> numbers of images and pairs, as the other writers do."""
    for folder in ("captions", "image_splits", "image_tag_dataset/tags"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    seed = arguments["seed"]
    counts: Counts = collections.defaultdict(dict)
    with atomic_write(root / "attributes.csv") as table_file, atomic_write(root / "descriptions.json") as text_file:
        table = csv.writer(table_file, lineterminator="\n")
        table.writerow(["id", "category", "split", "design", *ATTRIBUTE_NAMES])
        glue = "{\n"
        groups = itertools.groupby(lines_of(arguments), key=lambda line: (line[0].category, line[0].split))
        for (category, split), lines in groups:
            gallery: list[str] = []
            words: dict[str, list[list[str]]] = {}
            captions: list[dict[str, Any]] = []
            for line in lines:
                for item in line:
                    gallery.append(item.id)
                    words[item.id] = tags(item.attributes)
                    table.writerow([item.id, category, split, item.design, *(item.attributes[name] for name in ATTRIBUTE_NAMES)])
                    text_file.write(f"{glue}  {json.dumps(item.id)}: {json.dumps(description(item.attributes))}")
                    glue = ",\n"
                for reference, target, sentences in _pairs(line, seed):
                    entry: dict[str, Any] = {} if split == "test" else {"target": target.id}
                    captions.append({**entry, "candidate": reference.id, "captions": list(sentences)})
            write_json(root / f"captions/cap.{category}.{split}.json", captions)
            write_json(root / f"image_splits/split.{category}.{split}.json", gallery)
            write_json(root / f"image_tag_dataset/tags/asin2attr.{category}.{split}.json", words)
            counts[category][split] = {"images": len(gallery), "pairs": len(captions)}
        text_file.write("\n}\n")
    return dict(counts)


def _pairs(line: list[Item], seed: int) -> Iterator[tuple[Item, Item, tuple[str, str]]]:
    for pair in line_pairs(line, seed):
        target = pair.target
        rng = generator(seed, target.category, target.split, "words", target.number, pair.reference.number)
        yield pair.reference, target, modification_sentences(pair.reference.attributes, target.attributes, rng)


def caption(category: str, attributes: Attributes) -> str:
    """A garment as a phrase of attributes in a fixed order, such as "red striped maxi dress"."""
    kind = attributes["kind"]
    name = _CAPTION_ATTRIBUTE.get(category) or next(name for name in ("heel", "sole") if name in KINDS[kind].values)
    ending, words = _CAPTION_WORDS[name]
    value = attributes[name]
    return f"{attributes['colour']} {attributes['pattern']} {words.get(value, value + ending)} {kind}"


def write_fashion200k(root: Path, arguments: dict[str, Any]) -> Counts:
    """Fashion200k's layout: captions of attributes, and queries whose two captions differ by one word."""
    (root / "labels").mkdir(parents=True, exist_ok=True)
    counts: Counts = {fashion200k.ALL: {}}
    for split, name in SPLIT_NAMES.items():
        items = [item for line in lines_of(arguments) for item in line if item.split == split]
        captions = [caption(item.category, item.attributes) for item in items]
        for category in arguments["categories"]:
            with atomic_write(root / "labels" / f"{category}_{name}_detect_all.txt") as file:
                for item, text in zip(items, captions, strict=True):
                    if item.category == category:
                        file.write(f"images/{item.id}.jpg\t1.0\t{text}\n")
        index = fashion200k.CaptionIndex(captions)
        rng = random.Random(f"{arguments['seed']},{name}")
        pairs = len(index.modifiable)
        if name == "test":
            # In the published list too a picture asks for up to two different captions.
            queries = []
            for source in index.modifiable:
                drawn: dict[str, int] = {}
                for _ in range(2):
                    target = index.draw_target(source, rng)
                    drawn.setdefault(captions[target], target)
                queries += [(source, target) for target in drawn.values()]
            with atomic_write(root / fashion200k.QUERY_FILE) as file:
                file.writelines(f"images/{items[s].id}.jpg images/{items[t].id}.jpg\n" for s, t in queries)
            pairs = len(queries)
        counts[fashion200k.ALL][name] = {"images": len(items), "pairs": pairs}
    return counts


def write_shoes(root: Path, arguments: dict[str, Any]) -> Counts:
    """Shoes' layout: one sentence per pair, and a description for some of the pictures."""
    records, described = [], []
    names: dict[str, list[str]] = {"train": [], "test": []}
    counts: Counts = {shoes.ALL: {name: {"images": 0, "pairs": 0} for name in names}}
    for line in lines_of(arguments):
        name = SPLIT_NAMES[line[0].split]
        for item in line:
            names[name].append(item.id)
            if generator(arguments["seed"], item.category, item.split, "described", item.number).random() < _DESCRIBED:
                described.append({"ImageName": f"{item.id}.jpg", "Caption": description(item.attributes)})
        for reference, target, sentences in _pairs(line, arguments["seed"]):
            record = {"ImageName": f"{target.id}.jpg", "ReferenceImageName": f"{reference.id}.jpg", "RelativeCaption": sentences[0]}
            records.append(record)
            counts[shoes.ALL][name]["pairs"] += 1
    for name, ids in names.items():
        counts[shoes.ALL][name]["images"] = len(ids)
        with atomic_write(root / shoes.NAME_FILES[name]) as file:
            file.writelines(f"{image_id}.jpg\n" for image_id in ids)
    with atomic_write(root / shoes.GALLERY_FILE) as file:
        file.writelines(f"images/{image_id}.jpg \n" for image_id in names["test"])
    write_json(root / shoes.RELATIVE_FILE, records)
    write_json(root / shoes.CAPTION_FILE, described)
    return counts


def write_fashion_gen(root: Path, arguments: dict[str, Any]) -> Counts:
    """FashionGen's layout: descriptions, phrases and concepts. A text is answered by every picture of its split that it is true of."""
    seed = arguments["seed"]
    for folder in ("train", "val", "fashion_kb"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    items = [item for line in lines_of(arguments) for item in line]
    fathers: dict[str, str] = {}
    phrases: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    stated: dict[str, Attributes] = {}
    for item in items:
        rng = generator(seed, item.category, item.split, "description", item.number)
        stated[item.id] = facts = stated_facts(item.attributes, rng)
        texts[item.id] = varied_description(facts, rng)
        found = concepts_of(item.category, facts)
        phrases[item.id] = list(found)
        if item.split == "train":
            fathers.update(found)
    common = {phrase for phrase in fathers if is_common(phrase)}
    ConceptVocabulary.of(sorted(fathers), fathers).write(
        root / "train/wardrobe_concepts_queries.jsonl", root / "train/wardrobe_concepts_fathers.jsonl"
    )
    ConceptVocabulary.of(sorted(common), {phrase: fathers[phrase] for phrase in common}).write(
        root / "fashion_kb/wardrobe_concepts_queries.jsonl", root / "fashion_kb/wardrobe_concepts_fathers.jsonl"
    )
    counts: Counts = {"all": {}}
    for split in arguments["splits"]:
        lines: list[dict[str, Any]] = []
        truth: dict[str, list[int]] = {}
        there = [(place, item) for place, item in enumerate(items) if item.split == split]
        for number, item in there:
            line: dict[str, Any] = {"query_id": number, "query_text": texts[item.id]}
            if split == "train":
                own = phrases[item.id]
                lines.append({**line, "item_ids": [item.id], "phrases": own, "match_phrases": [p for p in own if p in common]})
            else:
                right = [other.id for _, other in there if stated[item.id].items() <= other.attributes.items()]
                lines.append({**line, "item_ids": right})
                for image_id in right:
                    truth.setdefault(image_id, []).append(number)
            lines[-1]["sub_category"] = item.attributes["kind"]
        ending = "_queries_phrases.jsonl" if split == "train" else "_queries.jsonl"
        write_lines(root / split / f"wardrobe_{split}{ending}", lines)
        if split != "train":
            rows = ({"image_id": item.id, "item_ids": truth[item.id]} for _, item in there)
            write_lines(root / split / f"wardrobe_{split}_images.jsonl", rows)
        counts["all"][split] = {"images": len(there), "pairs": sum(len(line["item_ids"]) for line in lines)}
    return counts


def attribute_labels(attributes: Attributes) -> list[tuple[str, str]]:
    """Task and name of every label of a garment in iMaterialist's layout. What a garment does not have ("no" belt) is no label."""
    found = []
    for task, (_, names) in _TASKS.items():
        for name, words in names.items():
            value = attributes.get(name, "")
            if value and value != "no":
                found.append((task, "sleeveless" if value == "sleeveless" else words.format(value)))
    return found


def _wardrobe_labels() -> LabelMap:
    """Every label that a garment can have, numbered in the order of the names, whatever their task."""
    every = {("color", colour) for colour in COLOURS} | {("print color", colour) for colour in COLOURS}
    every |= {("pattern", pattern) for pattern in PATTERNS}
    for kind, about in KINDS.items():
        every.update(attribute_labels({"kind": kind}))
        for name, values in about.values.items():
            every.update(label for value in values for label in attribute_labels({name: value}))
    ordered = sorted(every, key=lambda label: (label[1], label[0]))
    return LabelMap(Label(number, name, _TASKS[task][0], task) for number, (task, name) in enumerate(ordered, 1))


def write_imaterialist(root: Path, arguments: dict[str, Any]) -> Counts:
    """iMaterialist's layout: the attributes as labels. The pictures of a split come in random order, as there."""
    labels = _wardrobe_labels()
    numbers = {(label.task, label.name): label.id for label in labels}
    labels.write(root / "label_map.csv")
    items = [item for line in lines_of(arguments) for item in line]
    counts: Counts = {"all": {}}
    for split in arguments["splits"]:
        there = [item for item in items if item.split == split]
        order = generator(arguments["seed"], "imaterialist", split).permutation(len(there))
        images, annotations, pairs = [], [], 0
        for item in (there[place] for place in order):
            ids = sorted(numbers[label] for label in attribute_labels(item.attributes))
            images.append({"imageId": item.id, "url": f"images/{item.id}.jpg"})
            annotations.append({"imageId": item.id, "labelId": [str(number) for number in ids]})
            pairs += len(ids)
        name = {"val": "validation"}.get(split, split)
        with atomic_write(root / f"{name}.json") as file:
            json.dump({"images": images, "annotations": annotations}, file)
        counts["all"][split] = {"images": len(there), "pairs": pairs}
    return counts


LAYOUTS: dict[str, Callable[[Path, dict[str, Any]], Counts]] = {
    "fashion_iq": write_fashion_iq,
    "fashion200k": write_fashion200k,
    "shoes": write_shoes,
    "fashion_gen": write_fashion_gen,
    "imaterialist": write_imaterialist,
    "street_to_shop": write_street_to_shop,
}
