"""The sampler of UDMA-MLP: the structure of recorded batches against ours; and its training, step by step, by `fit`'s own step."""

from __future__ import annotations

import re
from collections import Counter

import keras
import numpy as np
import tensorflow as tf

from tests.parity.harness import Fixture, checks
from tf_fashion.clustering.meta_domains import Lists, PseudoLabels
from tf_fashion.inputs.domain_batches import CONSUMER, PAIR_KINDS, SHOP, TARGET, CategoryBatches, draw_pairs
from tf_fashion.losses.mined_triplet import MinedTriplet
from tf_fashion.models import DomainAdapter
from tf_fashion.training.optimizers import GroupedAdamW


@checks(r"sampler_train\.npz")
def sampler_train(fixture: Fixture) -> None:
    labels, first = _recorded_labels(fixture)
    for part in sorted({key.rsplit("/", 1)[0] for key in fixture.data if key.startswith("sampler/")}):
        _sampler(fixture, part, labels, first)
    _training(fixture)


def _recorded_labels(fixture: Fixture) -> tuple[PseudoLabels, int]:
    """The products that were sampled from, and how many shop rows the source has: the target's are counted on from there."""
    with np.load(fixture.folder / "weighting.npz", allow_pickle=False) as archive:
        data = {key: archive[key] for key in archive.files if key.startswith(("WS5/", "part0/WS5/", "df_shop/", "s2s_shop/"))}
    first = len(data["df_shop/pid"])

    def lists(key: str, offset: int = 0) -> Lists:
        return Lists(data[f"{key}_ptr"].astype(np.int64), data[f"{key}_idx"].astype(np.int64) - offset)

    weak = lists("part0/WS5/FWs", first)
    categories, products = (data[f"part0/WS5/{key}"].astype(np.int64) for key in ("class", "pid"))
    ones = np.ones(len(weak.rows), np.float32)
    return PseudoLabels("ws5", categories, products, lists("WS5/Fc"), lists("WS5/Fs"), weak, ones), first


def _by_product(products: np.ndarray, kinds: np.ndarray) -> dict[int, tuple[int, ...]]:
    """Product -> its kinds of pairs, in order; products must come one after the other."""
    starts = np.flatnonzero(np.diff(products, prepend=-1))
    parts = zip(products[starts].tolist(), np.split(kinds, starts[1:]), strict=True)
    return {product: tuple(part.tolist()) for product, part in parts}


def _sampler(fixture: Fixture, part: str, labels: PseudoLabels, first: int) -> None:
    name = re.fullmatch(r"sampler/(L1|L12)_bs(\d+)", part)
    assert name is not None
    weak, most = name[1] == "L12", int(name[2])
    anchors, positives, owners, draws, classes = (
        fixture.input(f"{part}/{key}") for key in ("anchor", "positive", "label", "draw", "class")
    )

    def domains(pairs: np.ndarray) -> np.ndarray:
        return np.where(pairs[:, 1] == 0, CONSUMER, np.where(pairs[:, 0] < first, SHOP, TARGET))

    ends = np.stack([domains(anchors), domains(positives)], axis=1)
    kinds = np.array([PAIR_KINDS.index(tuple(pair)) for pair in ends.tolist()])
    places = {int(product): place for place, product in enumerate(labels.products)}
    rows_of = (labels.consumers, labels.shops, labels.weak)
    offsets = np.array([0, 0, first])
    random = np.random.default_rng(0)
    theirs, ours, members, sizes, distinct, same_consumer = [], [], True, [], True, True
    for draw in np.unique(draws):
        for category in np.unique(classes):
            here = np.flatnonzero((draws == draw) & (classes == category))
            found = _by_product(owners[here], kinds[here])
            sizes.append(len(found) == min(most, len(labels.of_category(int(category)))))
            chosen = np.array([places[product] for product in found])
            own = draw_pairs(labels, chosen, random, weak)
            theirs.append(found)
            ours.append(_by_product(own.labels, own.kinds))
            for at in here:
                place = places[int(owners[at])]
                for end, row in zip(ends[at], (anchors[at, 0], positives[at, 0]), strict=True):
                    members &= bool((rows_of[end][place] == row - offsets[end]).any())
                distinct &= ends[at, 0] != ends[at, 1] or anchors[at, 0] != positives[at, 0]
                if kinds[at] == 3:
                    before = here[(owners[here] == owners[at]) & (kinds[here] == 0)]
                    same_consumer &= bool((anchors[before, 0] == anchors[at, 0]).all())
    fixture.equal(f"{part} kinds of pairs", ours, theirs)
    fixture.equal(f"{part} number of products", all(sizes), True)
    fixture.equal(f"{part} rows are the product's", members, True)
    fixture.equal(f"{part} two rows of one domain differ", bool(distinct), True)
    fixture.equal(f"{part} the weak pair's consumer", same_consumer, True)
    _whole_batches(fixture, part, labels, weak, most, Counter(classes[draws == draws[0]].tolist()) if most >= len(labels) else None)


def _whole_batches(fixture: Fixture, part: str, labels: PseudoLabels, weak: bool, most: int, expected: Counter | None) -> None:
    """A batch of all categories, by `CategoryBatches`, with rows' numbers as vectors."""
    counts = [int(entry.rows.max(initial=0)) + 1 for entry in (labels.consumers, labels.shops, labels.weak)]
    vectors = [np.arange(count, dtype=np.float32)[:, None] for count in counts]
    every = len(np.unique(labels.categories))
    batches = CategoryBatches(labels, *vectors, products_per_category=most, categories_per_batch=every, weak=weak)
    drawn = batches.pairs(0)
    fixture.equal(f"{part} categories", sorted(category for category, _ in drawn), np.unique(labels.categories).tolist())
    products = {category: len(np.unique(pairs.labels)) for category, pairs in drawn}
    wanted = {category: min(most, len(labels.of_category(category))) for category in products}
    fixture.equal(f"{part} products of each category", products, wanted)
    if expected is not None:
        fixture.equal(f"{part} pairs of each category", Counter({category: len(pairs) for category, pairs in drawn}), expected)
    found = batches.batch(0)
    rows = np.concatenate([np.concatenate([pairs.anchors[:, 0], pairs.positives[:, 0]]) for _, pairs in drawn])
    fixture.equal(f"{part} vectors", found[0][found[1] >= 0][:, 0].astype(np.int64).tolist(), rows.tolist())


def _training(fixture: Fixture) -> None:
    weight, bias = fixture.input("train/fc.weight_init"), fixture.input("train/fc.bias_init")
    rates, losses = fixture.input("train/lr"), fixture.data["train/loss_sum_over_categories"]
    epochs, start = int(fixture.input("train/num_epochs")), float(fixture.input("train/init_lr"))
    fixture.compare("train/lr", start * 0.1 ** (np.arange(len(rates)) // (epochs // 3)), rtol=1e-6, atol=0)
    model = DomainAdapter(feature_dim=weight.shape[1], dim=len(bias))
    model.set_linear(weight, bias)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [epochs // 3 * n - 1 for n in (1, 2)], [float(start * 0.1**n) for n in range(3)]
    )
    model.compile(GroupedAdamW(schedule, weight_decay=0.0), MinedTriplet(original_fallback=True))
    found = []
    for step in range(len(losses)):
        part = f"train/step{step}"
        blocks = []
        for category in fixture.input(f"{part}/categories"):
            key = f"{part}/cat{category}"
            both = np.concatenate([fixture.input(f"{key}/anchor"), fixture.input(f"{key}/positive")])
            blocks.append((both, np.tile(fixture.input(f"{key}/label"), 2)))
        longest = max(len(rows) for rows, _ in blocks)
        features = np.stack([np.pad(rows, ((0, longest - len(rows)), (0, 0))) for rows, _ in blocks])
        labels = np.stack([np.pad(owners, (0, longest - len(owners)), constant_values=-1) for _, owners in blocks])
        batch = tf.data.Dataset.from_tensors(({"features": features}, labels.astype(np.int64)))
        found.append(model.fit(batch, epochs=1, verbose=0).history["loss"][0])
        fixture.compare(f"{part}/fc.weight_after", np.transpose(model.fc.kernel), rtol=0, atol=5e-6)
        fixture.compare(f"{part}/fc.bias_after", model.fc.bias, rtol=0, atol=5e-6)
    fixture.compare("train/loss_sum_over_categories", found, rtol=0, atol=1e-4)
