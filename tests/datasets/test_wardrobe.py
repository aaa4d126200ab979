"""The drawn wardrobe: its tree, its truthfulness (judged by a reader of its own), and how hard the task is."""

import collections
import csv
import dataclasses
import hashlib
import json
import re

import numpy as np
import pytest
from PIL import Image

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets import FashionIQ
from tf_fashion.datasets.wardrobe import (
    Pose,
    draw_garment,
    draw_item,
    draw_picture,
    draw_wardrobe,
    wardrobe_items,
)
from tf_fashion.datasets.wardrobe_designs import line_pairs, wardrobe_lines
from tf_fashion.datasets.wardrobe_garments import COLOURS, KINDS, ORDERED, PATTERNS, Identity, values_of
from tf_fashion.datasets.wardrobe_sentences import description, modification_sentences

# A reader of the sentences that shares no code with their writer: pattern -> what it says of the target.
COLOUR_WORDS = "black|white|grey|beige|brown|red|orange|yellow|green|blue|purple|pink"
LUMINANCE = ["black", "brown", "purple", "blue", "red", "green", "grey", "orange", "pink", "beige", "yellow", "white"]
COMPARED = [
    (r"longer sleeves|sleeves that are (?:a bit |a little |slightly |much |a lot |far )?longer|more of the arms", "sleeve", 1),
    (r"shorter sleeves|sleeves that are (?:a bit |a little |slightly |much |a lot |far )?shorter|less of the arms", "sleeve", -1),
    (r"\blooser|baggier|wider body", "fit", 1),
    (r"tighter|more fitted|narrower body", "fit", -1),
    (r"flares out|fuller skirt|wider hem", "shape", 1),
    (r"less flared|straighter skirt|narrower hem", "shape", -1),
    (r"wider legs|legs that are (?:a bit |a little |slightly |much |a lot |far )?wider|wider in the leg", "leg", 1),
    (r"narrower legs|legs that are (?:a bit |a little |slightly |much |a lot |far )?slimmer|narrower in the leg", "leg", -1),
    (r"higher heel|heels that are (?:a bit |a little |slightly |much |a lot |far )?taller", "heel", 1),
    (r"lower heel|heels that are (?:a bit |a little |slightly |much |a lot |far )?lower", "heel", -1),
    (r"thicker soles|chunkier sole|soles that are (?:a bit |a little |slightly |much |a lot |far )?thicker", "sole", 1),
    (r"thinner soles|flatter sole|soles that are (?:a bit |a little |slightly |much |a lot |far )?thinner", "sole", -1),
    (r"higher shaft|higher up the leg|taller upper", "shaft", 1),
    (r"lower shaft|less of the leg|shorter upper", "shaft", -1),
    (r"longer cut|lower hem|\blonger\b(?! sleeves)", "length", 1),
    (r"shorter cut|higher hem|\bshorter\b(?! sleeves| upper)", "length", -1),
]
STATED = [
    (r"sleeveless|no sleeves|bare arms", "sleeve", "sleeveless"),
    (r"\bshort sleeves|short-sleeved", "sleeve", "short"),
    (r"three-quarter sleeves|below the elbow", "sleeve", "three-quarter"),
    (r"\blong sleeves|long-sleeved|full-length sleeves", "sleeve", "long"),
    (r"mini length|well above the knee", "length", "mini"),
    (r"knee[ -]length|ends at the knee", "length", "knee"),
    (r"maxi length|floor-length|reaches the floor", "length", "maxi"),
    (r"cropped", "length", "cropped"),
    (r"hip[ -]length|ends at the hip", "length", "hip"),
    (r"tunic[ -]length", "length", "tunic"),
    (r"length of shorts|cut as shorts", "length", "short"),
    (r"full length|full-length(?! sleeves)|reaches the ankles", "length", "full"),
    (r"slim fit|slim-fitting", "fit", "slim"),
    (r"regular fit|regular in fit", "fit", "regular"),
    (r"loose fit|loose-fitting", "fit", "loose"),
    (r"straight skirt|straight in shape", "shape", "straight"),
    (r"a-line", "shape", "a-line"),
    (r"flared skirt|(?<!less )\bflared\b", "shape", "flared"),
    (r"slim legs|slim in the leg", "leg", "slim"),
    (r"straight legs|straight in the leg", "leg", "straight"),
    (r"wide legs|wide in the leg", "leg", "wide"),
    (r"\bflat\b", "heel", "flat"),
    (r"mid heels|heels of medium", "heel", "mid"),
    (r"high heels|high-heeled", "heel", "high"),
    (r"thin soles|thin-soled", "sole", "thin"),
    (r"medium soles|soles of medium", "sole", "medium"),
    (r"thick soles|thick-soled|platform", "sole", "thick"),
    (r"low top|low-top", "shaft", "low"),
    (r"mid top|mid-top", "shaft", "mid"),
    (r"high top|high-top", "shaft", "high"),
    (r"ankle-high", "shaft", "ankle"),
    (r"calf-high", "shaft", "calf"),
    (r"knee-high", "shaft", "knee"),
    (r"round neck|crew neck", "neckline", "round"),
    (r"v-neck|v-shaped", "neckline", "v"),
    (r"square neck", "neckline", "square"),
    (r"boat neck", "neckline", "boat"),
    (r"turtleneck|rolled neck", "neckline", "turtle"),
    (r"pointed collar|collar with points", "collar", "pointed"),
    (r"stand-up|mandarin", "collar", "stand-up"),
    (r"\blaces\b|lace-up", "closure", "laces"),
    (r"velcro|closes with straps", "closure", "straps"),
    (r"slip", "closure", "slip-on"),
    (r"\bzip", "closure", "zip"),
    (r"buckle", "closure", "buckles"),
    (r"round toe|rounded at the toe", "toe", "round"),
    (r"pointed toe|pointy", "toe", "pointed"),
    (r"(no|without a) belt", "belt", "no"),
    (r"(?<!no )(?<!without )a belt|belted", "belt", "yes"),
    (r"no (chest )?pocket", "pocket", "no"),
    (r"a chest pocket|a pocket", "pocket", "yes"),
    (r"no turn-ups|plain hems|not turned up", "turn-ups", "no"),
    (r"turned-up hems|(?<!no )turn-ups|rolled up", "turn-ups", "yes"),
    (r"(no|without) pleats|not pleated", "pleats", "no"),
    (r"(?<!no )(?<!without )pleats|(?<!not )pleated", "pleats", "yes"),
    (r"no (ankle )?strap", "strap", "no"),
    (r"an ankle strap|a strap", "strap", "yes"),
    (r"no bow|without a bow", "bow", "no"),
    (r"(?<!without )a bow", "bow", "yes"),
]
PRINTS = [
    (r"stripe", "striped"),
    (r"dots|dotted", "dotted"),
    (r"check", "checked"),
    (r"flower|floral", "floral"),
    (r"zigzag", "zigzag"),
]


def read(sentence, reference, target):
    """Checks every claim of a sentence; returns the attributes it speaks of and those whose new value it states."""
    spoken, stated = set(), set()
    known = KINDS[target["kind"]].values
    text = re.sub(r"(instead of|rather than|and not) (a plain colour|[\w-]+)( ones)?", "", sentence)
    for denied, value in re.findall(r"\bno (stripes|dots|checks|flowers|zigzags)|instead of (\w+)", sentence):
        word = denied or value
        for shape, name in PRINTS:
            if re.search(shape, word):
                assert reference["pattern"] == name != target["pattern"], sentence
    for removed in re.findall(rf"(?:instead of|rather than|and not) ({COLOUR_WORDS})(?! ones)", sentence):
        assert reference["colour"] == removed != target["colour"], sentence
    text = re.sub(r"no (stripes|dots|checks|flowers|zigzags)", "one plain colour", text)
    text = re.sub(r"(\w+) (horizontal stripes|stripes|dots|polka dots|checks|flowers|zigzags)", r"\1_\2", text)
    for name in re.findall(rf"\b({COLOUR_WORDS})_", text):
        assert target["second"] == name, sentence
        spoken.add("second" if reference["pattern"] == target["pattern"] else "pattern")
    for name in re.findall(rf"\b({COLOUR_WORDS})\b(?!_)", text):
        assert target["colour"] == name, sentence
        spoken.add("colour")
        stated.add("colour")
    for shape, name in PRINTS:
        if re.search(shape, text):
            assert target["pattern"] == name, sentence
            spoken.add("pattern")
            stated.add("pattern")
    if re.search(r"\bplain\b(?! hems)|no pattern", text):
        assert target["pattern"] == "plain", sentence
        spoken.add("pattern")
        stated.add("pattern")
    shade = re.search(r"(much |a lot |far )?(darker|lighter)", text)
    if shade:
        sign = -1 if shade[2] == "darker" else 1
        assert sign * (LUMINANCE.index(target["colour"]) - LUMINANCE.index(reference["colour"])) > 0, sentence
        spoken.add("colour")
    for shape, name, sign in COMPARED:
        if name in known and re.search(shape, text):
            text = re.sub(shape, "#", text)
            values = known[name]
            step = sign * (values.index(target[name]) - values.index(reference[name]))
            assert step > 0, (sentence, name)
            spoken.add(name)
    for shape, name, value in STATED:
        if name in known and re.search(shape, text):
            if name == "length" and value == "cropped" and value not in known[name]:
                continue
            assert target[name] == value != reference[name], (sentence, name, value)
            spoken.add(name)
            stated.add(name)
    return spoken, stated


@pytest.fixture(scope="module")
def designs():
    lines = list(wardrobe_lines(3600, 0))
    return lines, [pair for line in lines for pair in line_pairs(line, 0)]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return draw_wardrobe(tmp_path_factory.mktemp("wardrobe") / "w", items=80, size=48, seed=3, progress=False, workers=1)


def digest(root):
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_sentences_are_true_and_name_every_change(designs):
    rng = np.random.default_rng(0)
    pairs = designs[1]
    vocabulary = set()
    for place in rng.permutation(len(pairs))[:2500]:
        pair = pairs[place]
        old, new = pair.reference.attributes, pair.target.attributes
        one, two = modification_sentences(old, new, rng)
        assert one != two
        assert one == one.lower().strip() and "{" not in one + two and "  " not in one + two
        spoken = [read(sentence, old, new)[0] for sentence in (one, two)]
        assert spoken[0] | spoken[1] == set(pair.names), (one, two, pair.names)
        vocabulary.update((one + " " + two).split())
    assert 150 < len(vocabulary) < 400


def test_the_reader_notices_lies(designs):
    lies = 0
    for pair in designs[1][:400]:
        old, new = pair.reference.attributes, pair.target.attributes
        sentences = modification_sentences(new, old, np.random.default_rng(1))
        with pytest.raises(AssertionError):
            for sentence in sentences:
                read(sentence, old, new)
        lies += 1
    assert lies == 400


def test_descriptions_are_true(designs):
    for line in designs[0][::3]:
        for item in line[::5]:
            text, attributes = description(item.attributes), item.attributes
            assert f" {attributes['colour']} " in text
            named = set(re.findall(rf"\b({COLOUR_WORDS})\b", text))
            assert named == {attributes["colour"], attributes["second"]} - {""}
            assert any(re.search(shape, text) for shape, _ in PRINTS) == (attributes["pattern"] != "plain")
            assert ("belt" in text) == (attributes["belt"] == "yes")


def recall(scores, target, k=10):
    """Chance that the target is among the first k, ties broken at random."""
    better, equal = (scores > scores[target]).sum(), (scores == scores[target]).sum()
    return float(np.clip((k - better) / equal, 0, 1))


def test_neither_picture_nor_words_suffice(designs):
    lines, pairs = designs
    galleries = collections.defaultdict(list)
    for line in lines:
        galleries[line[0].category].extend(item for item in line if item.split == "val")
    results = collections.defaultdict(lambda: collections.defaultdict(list))
    names = list(lines[0][0].attributes)
    codes = collections.defaultdict(lambda: len(codes))
    tables = {}
    for category, items in galleries.items():
        tables[category] = (
            np.array([[codes[item.attributes[name]] for name in names] for item in items]),
            np.array([dataclasses.astuple(item.identity) for item in items]),
            {item.id: place for place, item in enumerate(items)},
        )
    for pair in pairs:
        if pair.target.split != "val":
            continue
        category = pair.target.category
        table, looks, place = tables[category]
        reference, target = place[pair.reference.id], place[pair.target.id]
        row = results[category]
        same = (table == table[target]).all(1).astype(float)
        row["oracle"].append(recall(same, target))
        unlike = np.square(looks - looks[reference]).mean(1)
        row["oracle R@1"].append(recall(10 * same - unlike, target, 1))
        near = -(table != table[reference]).sum(1).astype(float)
        row["image, kept"].append(recall(near, target))
        near[reference] = -99
        row["image"].append(recall(near, target))
        fits = np.ones(len(table), bool)
        for name in pair.names:
            column = table[:, names.index(name)]
            new, old = pair.target.attributes[name], pair.reference.attributes[name]
            if name in ORDERED:
                # "Much longer" tells the direction and the least step, not the value.
                values = values_of(pair.target.attributes["kind"], name)
                step = values.index(new) - values.index(old)
                allowed = values[step:] if step > 0 else values[:step]
                fits &= np.isin(column, [codes[value] for value in allowed])
            else:
                fits &= column == codes[new]
        row["text"].append(recall(fits.astype(float), target))
    means = {category: {name: round(100 * np.mean(row), 1) for name, row in rows.items()} for category, rows in results.items()}
    print(means)
    mean = {name: np.mean([row[name] for row in means.values()]) for name in means["dress"]}
    assert all(len(table) > 300 for table, _, _ in tables.values())
    assert mean["oracle"] > 99 and mean["oracle R@1"] > 90
    assert mean["image"] < 33 and mean["image, kept"] < 33
    assert mean["text"] < 33


def test_splits_share_no_design_and_targets_of_val_are_unique(designs):
    lines, pairs = designs
    owner = {}
    ids = set()
    for line in lines:
        for item in line:
            assert owner.setdefault(item.design, item.split) == item.split
            assert item.id not in ids
            ids.add(item.id)
    assert len(ids) == 3600
    counts = collections.Counter(pair.target.split for pair in pairs)
    assert 6000 <= counts["train"] <= 9000
    held = [pair.target.id for pair in pairs if pair.target.split != "train"]
    assert len(held) == len(set(held))
    assert len({(pair.reference.id, pair.target.id) for pair in pairs}) == len(pairs)
    assert all(pair.reference.design == pair.target.design and 1 <= len(pair.names) <= 3 for pair in pairs)


def test_tree_is_in_fashioniqs_layout(tree):
    manifest = json.loads((tree / "wardrobe.json").read_text())
    rows = list(csv.DictReader((tree / "attributes.csv").read_text().splitlines()))
    descriptions = json.loads((tree / "descriptions.json").read_text())
    assert len(rows) == 80 == len(descriptions)
    assert {row["id"] for row in rows} == {path.stem for path in (tree / "images").iterdir()} == set(descriptions)
    for category, splits in manifest["counts"].items():
        for split, count in splits.items():
            gallery = json.loads((tree / f"image_splits/split.{category}.{split}.json").read_text())
            captions = json.loads((tree / f"captions/cap.{category}.{split}.json").read_text())
            words = json.loads((tree / f"image_tag_dataset/tags/asin2attr.{category}.{split}.json").read_text())
            assert count == {"images": len(gallery), "pairs": len(captions)} and captions
            assert set(words) == set(gallery)
            assert all(len(lists) == 6 and all(word == word.lower() for one in lists for word in one) for lists in words.values())
            for entry in captions:
                assert set(entry) == {"candidate", "captions"} | ({"target"} if split != "test" else set())
                assert entry["candidate"] in gallery and len(entry["captions"]) == 2
                assert entry.get("target", gallery[0]) in gallery
    with Image.open(tree / "images" / f"{rows[0]['id']}.jpg") as image:
        assert image.size == (48, 48) and image.mode == "RGB"


def test_the_library_reads_it(tree):
    data = FashionIQ(tree)
    part = data.get("dress", "train")
    assert part.triplets and all(data.image_path(image).is_file() for image in part.gallery)


def test_same_bytes_with_processes_and_after_an_interruption(tree, tmp_path):
    other = draw_wardrobe(tmp_path / "w", items=80, size=48, seed=3, progress=False, workers=2)
    expected = digest(tree)
    assert digest(other) == expected
    (other / "wardrobe.json").rename(other / "wardrobe.unfinished.json")
    for path in sorted((other / "images").iterdir())[::2]:
        path.unlink()
    (other / "images/.half.tmp").write_bytes(b"half")
    (other / "captions/cap.dress.train.json").unlink()
    draw_wardrobe(other, items=80, size=48, seed=3, progress=False, workers=1)
    assert digest(other) == expected


def test_a_picture_depends_on_its_own_number_only():
    items = list(wardrobe_items(90, seed=5))
    more = {item.id: item for item in wardrobe_items(2000, seed=5, categories=("top", "dress"))}
    again = draw_picture(items[40], 5, 32)
    assert again.tobytes() == draw_picture(items[40], 5, 32).tobytes()
    assert items[0].id in more and draw_picture(items[0], 5, 32).tobytes() != draw_picture(items[0], 6, 32).tobytes()


def test_a_complete_tree_is_left_alone_and_other_folders_are_refused(tree, tmp_path):
    before = (tree / "wardrobe.json").stat().st_mtime_ns
    assert draw_wardrobe(tree, items=80, size=48, seed=3, progress=False, categories=("shoes", "bottom", "top", "dress")) == tree
    assert (tree / "wardrobe.json").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="seed 3, asked for 4"):
        draw_wardrobe(tree, items=80, size=48, seed=4, progress=False)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"notes\.txt"):
        draw_wardrobe(tmp_path, items=80)
    with pytest.raises(UsageError, match="found a file"):
        draw_wardrobe(tmp_path / "notes.txt", items=80)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/wardrobe.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        draw_wardrobe(tmp_path / "bad", items=80)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"items": 0}, "items"),
        ({"items": 20}, "too few"),
        ({"seed": -1}, "seed"),
        ({"size": 8}, "size"),
        ({"categories": ("hats",)}, "hats"),
        ({"splits": ()}, "at least one"),
        ({"workers": 0}, "workers"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(UsageError, match=message):
        draw_wardrobe(tmp_path / "w", **arguments)
    assert not (tmp_path / "w").exists()


def test_every_value_can_be_drawn_and_shows():
    """Changing any one attribute changes the picture, also at 64 pixels."""
    for kind, about in KINDS.items():
        base = {"kind": kind, "colour": "blue", "pattern": "plain", "second": ""}
        base |= {name: values[len(values) // 2] for name, values in about.values.items()}
        changes = [{name: value} for name, values in about.values.items() for value in values if value != base[name]]
        changes += [{"colour": colour} for colour in COLOURS if colour != "blue"][:: len(COLOURS) // 3]
        changes += [{"pattern": pattern, "second": "white"} for pattern in PATTERNS[1:]]

        def draw(attributes):
            image = draw_garment(attributes, np.random.default_rng(0), 64, Identity(), Pose())
            return np.asarray(image.convert("RGBa"), float)

        plain = draw(base)
        assert plain[..., 3].max() == 255 and plain[0, :, 3].max() == 0 and plain[:, 0, 3].max() == 0
        for change in changes:
            moved = (np.abs(draw(base | change) - plain).max(2) > 25).mean()
            assert moved > 0.004, (kind, change, moved)


def test_drawing_refuses_unknown_attributes():
    rng = np.random.default_rng(0)
    good = next(iter(wardrobe_items(90)))
    with pytest.raises(UsageError, match="Unknown kind"):
        draw_item({"kind": "hat"}, rng, 64)
    with pytest.raises(UsageError, match="colour"):
        draw_item(good.attributes | {"colour": "mauve"}, rng, 64)
    with pytest.raises(UsageError, match="second"):
        draw_item(good.attributes | {"pattern": "dotted", "second": ""}, rng, 64)
    with pytest.raises(UsageError, match="at least 16"):
        draw_garment(good.attributes, rng, 4)
