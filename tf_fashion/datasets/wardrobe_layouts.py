"""What is written beside the pictures of the drawn wardrobe: the files of FashionIQ's, Fashion200k's or Shoes' layout."""

from __future__ import annotations

import collections
import csv
import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tf_fashion.core.files import atomic_write, write_json
from tf_fashion.datasets import fashion200k, shoes
from tf_fashion.datasets.wardrobe_designs import Item, generator, line_pairs, wardrobe_lines
from tf_fashion.datasets.wardrobe_garments import ATTRIBUTE_NAMES, KINDS, Attributes
from tf_fashion.datasets.wardrobe_sentences import description, modification_sentences, tags

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
# Share of the pictures that have a description in Shoes' layout.
_DESCRIBED = 1 / 3


def lines_of(arguments: dict[str, Any]) -> Iterator[list[Item]]:
    """The garments of a wardrobe, line by line."""
    return wardrobe_lines(arguments["items"], arguments["seed"], tuple(arguments["categories"]), tuple(arguments["splits"]))


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


LAYOUTS: dict[str, Callable[[Path, dict[str, Any]], Counts]] = {
    "fashion_iq": write_fashion_iq,
    "fashion200k": write_fashion200k,
    "shoes": write_shoes,
}
