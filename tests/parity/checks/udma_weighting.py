"""Pseudo-labels of UDMA: the strategies' matches and the lists that training reads, from recorded clusters."""

from __future__ import annotations

import numpy as np

from tests.parity.harness import Fixture, checks
from tf_fashion.clustering import meta_domains
from tf_fashion.clustering.meta_domains import DEEPFASHION_TO_STREET2SHOP as ALIGNMENT
from tf_fashion.clustering.meta_domains import Domain, GroupClusters, Lists, Matches

# Street2Shop's categories are counted on from here in the original.
TARGET_OFFSET = 100


@checks(r"weighting\.npz")
def weighting(fixture: Fixture) -> None:
    source_shop, source_consumer, target = (
        Domain(fixture.input(f"{name}/pid"), fixture.input(f"{name}/cid"), fixture.input(f"{name}/X"), name)
        for name in ("df_shop", "df_consumer", "s2s_shop")
    )
    first, last = len(source_shop), int(source_shop.products.max())
    fixture.compare("freq_pids", 1 / np.bincount(source_shop.products), rtol=1e-15, atol=0)
    clusters = {}
    found = meta_domains.cluster_groups(source_shop, target, ALIGNMENT, target_only=True, pruning="udma")
    for kind, groups in (("FW", ALIGNMENT.groups), ("W", ALIGNMENT.target_only)):
        for group in groups:
            key = f"{kind}/{group.target[0] + TARGET_OFFSET}"
            if f"{key}/idx" in fixture:
                entry = GroupClusters(fixture.input(f"{key}/idx").astype(np.int64), fixture.input(f"{key}/labels"))
                clusters[group.name] = entry
                fixture.exact(f"{key}/num_clust", entry.labels.max(axis=0) + 1)
                fixture.exact(f"{key}/idx", found[group.name].rows, note="rows of the group")
                fixture.exact(f"{key}/labels", found[group.name].labels, note="FINCH")

    def table(matches: Matches) -> np.ndarray:
        columns = [matches.target_products + last, matches.source_products, matches.similarity]
        return np.stack([*([] if matches.rows is None else [matches.rows + first]), *columns], axis=1).astype(np.float64)

    def lists(key: str, ours: Lists, offset: int = 0) -> None:
        fixture.exact(f"{key}_ptr", ours.splits)
        fixture.exact(f"{key}_idx", ours.rows + offset)

    products = meta_domains.product_matches(source_shop, target, ALIGNMENT)
    fixture.compare("ws7_csv", table(products), rtol=0, atol=1e-5)
    partitions = sorted({int(key.split("/")[0].removeprefix("part")) for key in fixture.data if key.startswith("part")})
    for number in partitions:
        part = f"part{number}"
        domains = (source_consumer, source_shop, target, ALIGNMENT)
        matches = meta_domains.cluster_matches(*domains, clusters, number)
        fixture.compare(f"{part}/ws5_csv", table(matches), rtol=0, atol=1e-5)
        fixture.compare(f"{part}/ws6_csv", table(meta_domains.best_of_products(matches)), rtol=0, atol=1e-5)
        for strategy in ("ws5", "ws6", "ws7", "ws8"):
            labels = meta_domains.pseudo_labels(*domains, strategy, partition=number, clusters=clusters)
            key = f"{part}/{strategy.upper()}"
            fixture.exact(f"{key}/class", labels.categories)
            fixture.exact(f"{key}/pid", labels.products)
            fixture.exact(f"{key}/has_FWs", labels.attached)
            lists(f"{key}/FWs", labels.weak, first)
            fixture.equal(f"{key} weights", np.unique(labels.weights).tolist(), [1.0])
            if strategy == "ws5":
                lists("WS5/Fc", labels.consumers)
                lists("WS5/Fs", labels.shops)
        labels = meta_domains.pseudo_labels(*domains, "unweighted", partition=number, clusters=clusters)
        own = meta_domains.target_clusters(*domains, clusters, number)
        extra = len(own.products)

        def padded(ours: Lists, before: int, after: int) -> Lists:
            """The entries of the other level have none of these lists."""
            return Lists(np.pad(ours.splits, (before, after), mode="edge"), ours.rows)

        key = f"{part}/part2"
        new = 1 + int(source_shop.categories.max())
        numbers = {group.target[0]: new + place for place, group in enumerate(ALIGNMENT.target_only)}
        fixture.exact(f"{key}/class", [*labels.categories, *(numbers[int(category)] for category in own.categories)])
        fixture.exact(f"{key}/pid", [*labels.products, *own.products])
        fixture.exact(f"{key}/has_FWs", [*labels.attached, *([False] * extra)])
        lists(f"{key}/Fc", padded(labels.consumers, 0, extra))
        lists(f"{key}/Fs", padded(labels.shops, 0, extra))
        lists(f"{key}/FWs", padded(labels.weak, 0, extra), first)
        lists(f"{key}/Ws", padded(own.rows, len(labels), 0), first)
