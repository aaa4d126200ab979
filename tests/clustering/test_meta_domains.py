"""Pseudo-labels across meta-domains, against slow definitions."""

import numpy as np
import pytest

from tf_fashion.clustering.meta_domains import (
    DEEPFASHION_TO_STREET2SHOP,
    STRATEGIES,
    CategoryAlignment,
    CategoryGroup,
    Domain,
    GroupClusters,
    Matches,
    PseudoLabels,
    best_of_products,
    cluster_groups,
    cluster_matches,
    product_matches,
    pseudo_labels,
    rows_of_partners,
    target_clusters,
)
from tf_fashion.core.errors import DataError, UsageError


def made_up(seed=0, categories=3, products=12, width=6):
    """Three domains of some categories, and their alignment; the last category of the target is alone."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((products, width))
    category_of = np.sort(rng.integers(0, categories, products))

    def domain(counts, name, numbers, of, noise):
        owners = np.repeat(np.arange(len(counts)), counts)
        rng.shuffle(owners)
        rows = centres[owners % products] + noise * rng.standard_normal((len(owners), width))
        return Domain(numbers[owners], of[owners], rows.astype(np.float32), name)

    numbers = np.arange(products) * 3 + 1
    shop = domain(rng.integers(1, 5, products), "df_shop", numbers, category_of, 0.4)
    consumer = domain(rng.integers(1, 4, products), "df_consumer", numbers, category_of, 0.9)
    other = np.arange(products) + 1
    target_category = np.append(category_of, [categories])
    target = domain(rng.integers(1, 5, products + 1), "s2s_shop", np.append(other, [products + 5]), target_category, 0.4)
    aligned = {number: (number,) for number in range(categories) if number in category_of}
    return consumer, shop, target, CategoryAlignment.of(aligned, target_only=(categories,))


def slow_ws5(consumer, shop, target, alignment, clusters, partition):
    z = np.concatenate([shop.features, target.features])
    found = {}
    for group in alignment.groups:
        rows, labels = clusters[group.name].rows, clusters[group.name].labels[:, partition]
        for label in set(labels.tolist()):
            members = rows[labels == label]
            ours, theirs = members[members < len(shop)], members[members >= len(shop)]
            if not any(p in consumer.products[np.isin(consumer.categories, group.source)] for p in shop.products[ours]):
                continue
            score = {
                p: (shop.products[ours] == p).sum() * (1 / (shop.products == p).sum())
                for p in sorted(set(shop.products[ours].tolist()))
            }
            best = [p for p in score if score[p] == max(score.values())]
            means = [z[ours[shop.products[ours] == p]].mean(axis=0) for p in best]
            for row in theirs:
                sims = [z[row] @ m / np.linalg.norm(z[row]) / np.linalg.norm(m) for m in means]
                found[int(row) - len(shop)] = (best[int(np.argmax(sims))], max(sims))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_ws5_as_defined(seed):
    consumer, shop, target, alignment = made_up(seed)
    clusters = cluster_groups(shop, target, alignment)
    for partition in range(min(entry.labels.shape[1] for entry in clusters.values())):
        matches = cluster_matches(consumer, shop, target, alignment, clusters, partition)
        expected = slow_ws5(consumer, shop, target, alignment, clusters, partition)
        assert dict(zip(matches.rows.tolist(), matches.source_products.tolist(), strict=True)) == {
            r: p for r, (p, _) in expected.items()
        }
        np.testing.assert_allclose(matches.similarity, [expected[row][1] for row in matches.rows], atol=1e-5)
        assert (np.diff(matches.rows) > 0).all() and (matches.target_products == target.products[matches.rows]).all()


@pytest.mark.parametrize("seed", range(3))
def test_ws7_is_one_to_one_and_stable(seed):
    consumer, shop, target, alignment = made_up(seed, products=9 + seed)
    matches = product_matches(shop, target, alignment)
    for side in (matches.source_products, matches.target_products):
        assert len(set(side.tolist())) == len(side)
    aligned = np.isin(target.categories, [group.target[0] for group in alignment.groups])
    assert set(matches.target_products.tolist()) <= set(target.products[aligned].tolist())
    assert len(matches) == min(len(np.unique(target.products[aligned])), len(np.unique(shop.products)))
    # No target and source product, both matched, like each other more than their partners.
    unit = lambda rows: rows / np.linalg.norm(rows, axis=-1, keepdims=True)  # noqa: E731
    here = unit(np.array([shop.features[shop.products == p].mean(axis=0) for p in matches.source_products]))
    there = unit(np.array([target.features[target.products == p].mean(axis=0) for p in matches.target_products]))
    similarity = there @ here.T
    np.testing.assert_allclose(np.diag(similarity), matches.similarity, atol=1e-5)
    own = np.diag(similarity)
    better = (similarity > own[:, None] + 1e-6) & (similarity > own[None, :] + 1e-6)
    assert not better.any()


def test_strategies_agree_on_products_and_weights():
    consumer, shop, target, alignment = made_up(3)
    clusters = cluster_groups(shop, target, alignment)
    labels = {name: pseudo_labels(consumer, shop, target, alignment, name, clusters=clusters) for name in STRATEGIES}
    for name, entry in labels.items():
        assert (np.lexsort((entry.products, entry.categories)) == np.arange(len(entry))).all() and entry.strategy == name
        for number, product in enumerate(entry.products):
            assert (consumer.products[entry.consumers[number]] == product).all() and len(entry.consumers[number])
            assert (shop.products[entry.shops[number]] == product).all() and len(entry.shops[number])
        assert len(entry.weights) == len(entry.weak.rows) and entry.weights.dtype == np.float32
        assert name == "soft" or (entry.weights == 1).all()
        assert entry.summary()["attachments"] == len(entry.weak.rows)
    ws5, loose, soft = labels["ws5"], labels["unweighted"], labels["soft"]
    assert len(set(ws5.weak.rows.tolist())) == len(ws5.weak.rows), "ws5 gives a photo to one product"
    for number in range(len(ws5)):
        assert set(ws5.weak[number].tolist()) <= set(loose.weak[number].tolist()) >= set(soft.weak[number].tolist())
        assert len(soft.weights_of(number)) == len(soft.weak[number])
    assert (soft.weights > 0).all() and np.bincount(soft.weak.rows, soft.weights).max() <= 1 + 1e-5
    for number, product in enumerate(labels["ws6"].products):
        rows = labels["ws6"].weak[number]
        assert len(set(target.products[rows].tolist())) <= 1, "ws6 takes one target product, whole"
        if len(rows):
            assert (target.products == target.products[rows[0]]).sum() == len(rows), product
    for attribute in ("splits", "rows"):
        assert (getattr(labels["ws7"].weak, attribute) == getattr(labels["ws8"].weak, attribute)).all()


def test_products_without_shop_photos_are_left_out_and_counted():
    consumer, shop, target, alignment = made_up(1)
    gone = int(shop.products[0])
    kept = shop.products != gone
    smaller = Domain(shop.products[kept], shop.categories[kept], shop.features[kept], "df_shop")
    labels = pseudo_labels(consumer, smaller, target, alignment, "unweighted")
    assert labels.left_out == 1 and gone not in labels.products
    nothing = Domain(consumer.products + 1000, consumer.categories)
    with pytest.raises(DataError, match="No product has photos in both"):
        pseudo_labels(nothing, shop, target, alignment, "ws7")
    twice = Domain(np.zeros(2, int), np.array([0, 1]))
    with pytest.raises(DataError, match="product 0 is in two categories"):
        pseudo_labels(twice, shop, target, alignment, "ws7")


def test_files_of_matches_and_labels(tmp_path):
    consumer, shop, target, alignment = made_up(2)
    clusters = cluster_groups(shop, target, alignment)
    five, seven = cluster_matches(consumer, shop, target, alignment, clusters), product_matches(shop, target, alignment)
    for matches, width in ((five, 4), (best_of_products(five), 4), (seven, 3)):
        path = matches.write_csv(tmp_path / "a.csv", shop)
        lines = path.read_text().splitlines()
        assert len(lines) == len(matches) and all(len(line.split(",")) == width for line in lines)
        again = Matches.read_csv(path, shop, target)
        for name in ("rows", "target_products", "source_products", "similarity"):
            assert np.array_equal(getattr(again, name), getattr(matches, name))
    first = five.write_csv(tmp_path / "a.csv", shop).read_text().splitlines()[0].split(",")
    assert [int(first[0]), int(first[1])] == [five.rows[0] + len(shop), five.target_products[0] + shop.products.max()]
    given = pseudo_labels(consumer, shop, target, alignment, "ws6", matches=Matches.read_csv(tmp_path / "a.csv", shop, target))
    computed = pseudo_labels(consumer, shop, target, alignment, "ws6", clusters=clusters)
    assert (given.weak.rows == computed.weak.rows).all()
    loaded = PseudoLabels.load(computed.save(tmp_path / "labels.npz"))
    assert loaded.summary() == computed.summary() and (loaded.weak.splits == computed.weak.splits).all()
    for text, message in (
        ("1,2\n", "expected 4 columns"),
        ("1,2,x,0.5\n", "line 1: expected 4 numbers"),
        (f"{first[0]},{first[1]},{first[2]},nan\n", "whole numbers and a similarity"),
        (f"{first[0]},{first[1]},99999,0.5\n", "source product 99999 is not in the lists"),
        (f"{first[0]},99999,{first[2]},0.5\n", "target product 99999 is not in the lists"),
        (f"0,{first[1]},{first[2]},0.5\n", "row 0 is no photo of target product"),
        (f"{','.join(first)}\n1,2,3\n", "line 2"),
    ):
        (tmp_path / "b.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            Matches.read_csv(tmp_path / "b.csv", shop, target)
    with pytest.raises(DataError, match="no array 'categories'|no array 'consumers_splits'"):
        np.savez(tmp_path / "c.npz", strategy=np.array("ws5"))
        PseudoLabels.load(tmp_path / "c.npz")


def test_alignments():
    names = [group.name for group in DEEPFASHION_TO_STREET2SHOP.groups]
    assert names == ["dresses", "leggings", "outerwear", "pants", "skirts", "tops"] and len(DEEPFASHION_TO_STREET2SHOP.target_only) == 5
    by_name = CategoryAlignment.by_name({0: "T_Shirt", 3: "Dress", 4: "dress"}, {0: "dress", 1: "t-shirt", 2: "belts"})
    assert by_name.groups == (CategoryGroup("dress", (0,), (3, 4)), CategoryGroup("t-shirt", (1,), (0,)))
    assert by_name.target_only == (CategoryGroup("belts", (2,)),)
    single = CategoryAlignment.single([2, 0, 2], [1])
    assert single.groups == (CategoryGroup("all", (1,), (0, 2)),)
    with pytest.raises(UsageError, match="No category of the target"):
        CategoryAlignment.by_name({0: "a"}, {0: "b"})
    with pytest.raises(UsageError, match="target category 1 is in two groups"):
        CategoryAlignment((CategoryGroup("a", (1,), (1,)), CategoryGroup("b", (1,), (2,))))
    with pytest.raises(UsageError, match="needs a target and a source category"):
        CategoryAlignment((CategoryGroup("a", (1,)),))


def test_target_clusters_and_hand_made_ones():
    consumer = Domain([0], [0])
    shop = Domain([0, 0, 1], [0, 0, 0], np.eye(3, 4))
    target = Domain([7, 8, 9], [0, 0, 1], np.eye(4)[[0, 3, 2]])
    alignment = CategoryAlignment.of({0: (0,)}, target_only=(1,))
    clusters = {
        "0": GroupClusters(np.arange(5), np.array([[0], [1], [0], [0], [1]], np.int32)),
        "1": GroupClusters(np.array([5]), np.zeros((1, 1), np.int32)),
    }
    # Product 1 has all of its photos in cluster 0, product 0 half of them.
    matches = cluster_matches(consumer, shop, target, alignment, clusters)
    assert matches.source_products.tolist() == [1, 0] and matches.similarity.tolist() == [0.0, 0.0]
    assert rows_of_partners(matches, target)[1].tolist() == [0]
    labels = pseudo_labels(consumer, shop, target, alignment, "ws5", clusters=clusters)
    assert labels.products.tolist() == [0] and labels.weak.rows.tolist() == [1], "product 1 has no consumer photo"
    own = target_clusters(consumer, shop, target, alignment, clusters)
    assert own.products.tolist() == [101] and own.categories.tolist() == [1] and own.rows.rows.tolist() == [2]
    with pytest.raises(UsageError, match="no partition 1 of 0: FINCH found 1"):
        pseudo_labels(consumer, shop, target, alignment, "ws5", clusters=clusters, partition=1)


def test_what_cannot_be_used():
    good = Domain([0, 1], [0, 0], np.eye(2))
    alignment = CategoryAlignment.of({0: (0,)})
    with pytest.raises(DataError, match=r"s2s: expected finite features, found NaN or infinity in 1 row\(s\) \(1\)"):
        Domain([0, 1], [0, 0], np.array([[1, 2], [np.nan, 1]]), "s2s")
    with pytest.raises(UsageError, match="products must be whole numbers from 0"):
        Domain([-1], [0])
    with pytest.raises(UsageError, match="2 products and 1 categories"):
        Domain([0, 1], [0])
    with pytest.raises(UsageError, match=r"features must be \(2, dim\)"):
        Domain([0, 1], [0, 0], np.eye(3))
    with pytest.raises(UsageError, match="different widths: 2 and 3"):
        cluster_groups(good, Domain([0, 1], [0, 0], np.ones((2, 3))), alignment)
    with pytest.raises(UsageError, match="expected photos with features"):
        cluster_groups(good, Domain([0, 1], [0, 0]), alignment)
    with pytest.raises(UsageError, match="is in a category of the alignment"):
        cluster_groups(good, Domain([0, 1], [5, 5], np.eye(2)), alignment)
    with pytest.raises(UsageError, match="Unknown strategy 'ws4'"):
        pseudo_labels(good, good, good, alignment, "ws4")
    with pytest.raises(UsageError, match="temperature must be above 0"):
        pseudo_labels(good, good, good, alignment, "soft", temperature=0)
