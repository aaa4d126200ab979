"""Text processing, vocabularies, GloVe tables and image transforms against the FashionIQ 2020 family of records."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import tensorflow as tf

from tests.parity.harness import Fixture, checks
from tf_fashion.inputs.augment import affine, affine_matrix
from tf_fashion.inputs.glove import glove_filled, glove_table
from tf_fashion.inputs.images import ImageSpec, bars_geometry, padded_geometry, preprocess
from tf_fashion.inputs.text import (
    WordTokenizer,
    build_vocabulary,
    join_captions,
    legacy_caption_order,
    load_spelling,
    tokenize,
)

CATEGORIES = ("dress", "toptee", "shirt")
NO_CAPTIONS = "needs FashionIQ's 36,000 training captions, which are not in the folder (set TF_FASHION_SHARED to use the public ones)"


def _training_captions() -> list[list[str]] | None:
    """Caption pairs of FashionIQ's training split in the order dress, toptee, shirt; None where the files are absent."""
    shared = Path(os.environ.get("TF_FASHION_SHARED") or Path(__file__).resolve().parents[4] / "shared")
    folder = shared / "data/fashion_iq_text/captions"
    files = [folder / f"cap.{category}.train.json" for category in CATEGORIES]
    if not all(file.is_file() for file in files):
        return None
    return [row["captions"] for file in files for row in json.loads(file.read_text("utf-8"))]


def _vocabularies(pairs: list[list[str]]) -> dict[str, list[str]]:
    """The four vocabularies of `vocabulary.npz`, special words first, rebuilt from the captions."""
    captions = [caption for pair in pairs for caption in pair]
    unique = sorted(set(captions))
    rtic = ["[UNK]", "[CLS]", "[SEP]"]
    return {
        "words": ["[PAD]", "[CLS]", "[SEP]", *build_vocabulary(captions, spelling="fashion_iq")],
        "tirg_words": ["<UNK>", *build_vocabulary(captions, order="alphabetical")],
        "rtic_words_spell": rtic + _rtic_words(unique),
        "rtic_words_nospell": rtic + build_vocabulary(unique),
    }


def _rtic_words(captions: list[str]) -> list[str]:
    """RTIC cleans the corrected words once more, so that "t-shirt" loses its hyphen again."""
    table = load_spelling("fashion_iq")
    return build_vocabulary(" ".join(tokenize(caption, table)) for caption in captions)


def _known_vocabularies(folder: Path) -> dict[str, list[str]] | None:
    if (folder / "vocabulary.npz").is_file():
        with np.load(folder / "vocabulary.npz") as recorded:
            return {key: [str(word) for word in recorded[key]] for key in recorded.files if "words" in key}
    pairs = _training_captions()
    return None if pairs is None else _vocabularies(pairs)


def _tokenizer(vocabulary: list[str], specials: int, **options: object) -> WordTokenizer:
    return WordTokenizer(vocabulary[specials:], specials=vocabulary[:specials], legacy_markers=True, **options)


def _ids(tokenizer: WordTokenizer, texts: list[str], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids as the records hold them: -1 beyond the length."""
    rows = tokenizer.ragged(texts)
    return rows.to_tensor(-1, shape=(None, width)).numpy(), rows.row_lengths().numpy()


def _strings(values: np.ndarray) -> list[str]:
    return [str(value) for value in values]


@checks(r"text_processing\.npz")
def text_processing(fixture: Fixture) -> None:
    first, second = _strings(fixture.input("caption_a")), _strings(fixture.input("caption_b"))
    swapped = fixture.input("swapped")
    pairs = list(zip(first, second, strict=True))
    ordered = [(b, a) if swap else (a, b) for (a, b), swap in zip(pairs, swapped, strict=True)]
    joined = [join_captions(pair, "fiq2020") for pair in ordered]
    fixture.exact("joined", joined)
    fixture.exact("tokens_raw", [" ".join(tokenize(text)) for text in joined])
    table = load_spelling("fashion_iq")
    fixture.exact("tokens_corrected", [" ".join(tokenize(text, table)) for text in joined])
    fixture.exact("clip4cir_ab", [join_captions((a, b), "clip4cir") for a, b in pairs])
    fixture.exact("clip4cir_ba", [join_captions((b, a), "clip4cir") for a, b in pairs])
    fixture.exact("clip4cir_a", [join_captions((a,), "clip4cir") for a in first])
    fixture.exact("clip4cir_b", [join_captions((b,), "clip4cir") for b in second])

    category, row, candidate = (fixture.input(key) for key in ("category", "row", "candidate"))
    split = str(fixture.data["sentence_key"][0]).split("_")[0]
    fixture.exact("sentence_key", [f"{split}_{c}_{i}_{r}" for c, i, r in zip(category, candidate, row, strict=True)])
    fixture.not_covered("target", "carried along by the record; nothing is computed from it")

    vocabularies = _known_vocabularies(fixture.folder)
    if vocabularies is None:
        for key in ("ids", "ids_len", "tirg_ids_a", "tirg_ids_b", "rtic_ids_nospell", "rtic_ids_spell"):
            fixture.not_covered(key, NO_CAPTIONS)
        return
    ids, lengths = _ids(_tokenizer(vocabularies["words"], 3, spelling="fashion_iq"), joined, fixture.data["ids"].shape[1])
    fixture.exact("ids", ids)
    fixture.exact("ids_len", lengths)
    tirg = _tokenizer(vocabularies["tirg_words"], 1)
    fixture.exact("tirg_ids_a", _ids(tirg, first, fixture.data["tirg_ids_a"].shape[1])[0])
    fixture.exact("tirg_ids_b", _ids(tirg, second, fixture.data["tirg_ids_b"].shape[1])[0])
    forms = [join_captions(pair, "rtic") for pair in pairs]
    for kind in ("nospell", "spell"):
        key = f"rtic_ids_{kind}"
        fixture.exact(key, _ids(_tokenizer(vocabularies[f"rtic_words_{kind}"], 3), forms, fixture.data[key].shape[1])[0])


@checks(r"vocabulary\.npz")
def vocabulary(fixture: Fixture) -> None:
    pairs = _training_captions()
    if pairs is None:
        for key in fixture.data:
            fixture.not_covered(key, NO_CAPTIONS)
        return
    words = _vocabularies(pairs)
    for key, ours in words.items():
        fixture.exact(key, ours)
    table = load_spelling("fashion_iq")
    found = [word for pair in pairs for caption in pair for word in tokenize(caption, table)]
    names, numbers = np.unique(found, return_counts=True)
    counts = dict(zip(_strings(names), numbers.tolist(), strict=True))
    # The original gives its special words a count above every threshold.
    fixture.exact("counts", [9e9 if word in words["words"][:3] else counts[word] for word in words["words"]])


@checks(r"caption_order\.npz")
def caption_order(fixture: Fixture) -> None:
    runs: dict[str, list[str]] = {}
    for key in fixture.data:
        runs.setdefault(key.split(".")[0], []).append(key)
    for keys in runs.values():
        for key, ours in zip(keys, legacy_caption_order([len(fixture.data[key]) for key in keys]), strict=True):
            fixture.exact(key, ours)


@checks(r"glove_init\.npz")
def glove_init(fixture: Fixture) -> None:
    words = _strings(fixture.input("words"))
    sources = []
    for number in range(sum(key.endswith("_vecs") for key in fixture.data)):
        names, vectors = fixture.input(f"glove{number}_words"), fixture.input(f"glove{number}_vecs")
        sources.append(dict(zip(_strings(names), vectors, strict=True)))
    filled = glove_filled(words, sources)
    fixture.exact("filled", filled)
    table = glove_table(words, sources, missing="legacy_normal")
    fixture.exact("table_filled_rows", np.where(filled[:, np.newaxis], table, np.float32(0)))
    values = table[~filled]
    bound = 5 / np.sqrt(2 * max(values.size, 1))
    fixture.compare("unfilled_std", values.std(), rtol=0, atol=bound, note="another draw of N(0, 1): five standard errors")


@checks(r"image_transforms\.npz")
def image_transforms(fixture: Fixture) -> None:
    size = int(fixture.input("size"))
    count = sum(key.startswith("img") for key in fixture.data)
    affines = sum(key.startswith("affine_params_") for key in fixture.data)

    def run(image: np.ndarray, spec: ImageSpec) -> np.ndarray:
        return preprocess(tf.constant(image), spec).numpy()

    for j in range(affines):
        angle, dx, dy, scale = fixture.input(f"affine_params_{j}")
        matrix = affine_matrix(size, size, angle, (dx, dy), scale, center_offset=0.5)
        fixture.compare(f"affine_matrix_{j}", matrix, rtol=1e-9, atol=1e-9)
    for i in range(count):
        image = fixture.input(f"img{i}")
        height, width = image.shape[:2]
        fixture.exact(f"inner_wh{i}", padded_geometry(height, width, size)[:2])
        nearest = run(image, ImageSpec(size, "pad", "nearest", scaling="raw"))
        fixture.exact(f"padded_nearest{i}", nearest.astype(np.uint8))
        for kind in ("bicubic", "bilinear"):
            fixture.within(f"padded_{kind}{i}", run(image, ImageSpec(size, "pad", kind, scaling="raw")), 1)
        normalised = run(image, ImageSpec(size, "pad", "nearest", scaling="torch"))
        fixture.compare(f"normalised{i}", normalised.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)
        for j in range(affines):
            key = f"affine{i}_{j}"
            angle, dx, dy, scale = fixture.data[f"affine_params_{j}"]
            turned = affine(tf.constant(nearest.astype(np.uint8)), angle, (dx, dy), scale, "nearest", center_offset=0.5)
            fixture.exact(key, turned)
        for mode in ("square", "target"):
            for key in [key for key in fixture.data if key.startswith(f"{mode}pad") and key.split("_")[1] == f"{i}"]:
                _clip4cir(fixture, key, image, mode)
            if f"{mode}pad_shape{i}" in fixture:
                left, top = bars_geometry(height, width, ImageSpec(size, f"{mode}_pad"))
                fixture.exact(f"{mode}pad_shape{i}", (height + 2 * top, width + 2 * left, 3))
    for key in [key for key in fixture.data if key.startswith("geometry")]:
        recorded = fixture.data[key]
        side = int(key[len("geometry") : key.index("_")])
        fixture.exact(key, [[h, w, *padded_geometry(int(h), int(w), side)] for h, w in recorded[:, :2]])


def _clip4cir(fixture: Fixture, key: str, image: np.ndarray, mode: str) -> None:
    side = int(key[len(f"{mode}pad") : key.index("_")])
    clip = key.endswith("_clipnorm")
    spec = ImageSpec(side, f"{mode}_pad", "bicubic", scaling="clip" if clip else "raw")
    result = preprocess(tf.constant(image), spec)
    if clip:
        fixture.compare(key, result, rtol=1e-5, atol=1 / 255 / 0.2613, note="one grey level")
    else:
        fixture.within(key, result, 1)
