"""UDMA's evaluation: the MATLAB scripts for DeepFashion and Street2Shop, and their average precision of one ranking."""

from __future__ import annotations

import numpy as np

from tests.parity.harness import Fixture, checks
from tf_fashion.reports.udma import original_lines
from tf_fashion.retrieval.multi_positive import (
    StreetResult,
    evaluate,
    evaluate_scores,
    get_street_protocol,
    group_numbers,
    ranking_metrics,
)

CATEGORIES = ("belts", "bags", "dresses", "eyewear", "footwear", "hats", "leggings", "outerwear", "pants", "skirts", "tops")


@checks(r"evaluation\.npz")
def evaluation(fixture: Fixture) -> None:
    # VAL's recording has this name, too.
    if not any(key.endswith("/query_feats") for key in fixture.data):
        return
    blocks = sorted({key.split("/")[0] for key in fixture.data})
    for block in blocks:
        if block.startswith("df"):
            deepfashion(fixture, block)
        elif block.startswith("s2s"):
            street2shop(fixture, block)
        else:
            one_ranking(fixture, block)


def deepfashion(fixture: Fixture, block: str) -> None:
    ids = fixture.input(f"{block}/query_ids"), fixture.input(f"{block}/gallery_ids")
    features = fixture.input(f"{block}/query_feats"), fixture.input(f"{block}/gallery_feats")
    distances = fixture.input(f"{block}/distance_gallery_by_query").T
    fixture.exact(f"{block}/queryID", group_numbers(ids[0]))
    fixture.exact(f"{block}/testID", group_numbers(ids[1]))
    correct, original = get_street_protocol("deepfashion-c2s"), get_street_protocol("deepfashion-c2s-original")
    for protocol, prefix in ((correct, "correct_"), (original, "")):
        from_features = evaluate(*features, *ids, protocol, precision="float64")
        for found, note in ((evaluate_scores(-distances, *ids, protocol), "recorded distances"), (from_features, "from features")):
            # Ranks may differ only where distances do by less than 1e-6.
            swapped = found is from_features and _has_near_ties(distances)
            fixture.compare(f"{block}/{prefix}ap", found.average_precision, rtol=0, atol=0.5 if swapped else 1e-6, note=note)
            fixture.compare(f"{block}/{prefix}first_hit_rank", found.first_rank, rtol=0, atol=1 if swapped else 0, note=note)
    result = evaluate_scores(-distances, *ids, original)
    fixture.compare(f"{block}/cmc_mean", result.cmc(), rtol=0, atol=1e-12)
    fixture.compare(f"{block}/mAP", result.overall["mAP"], rtol=0, atol=1e-6)
    fixture.exact(f"{block}/printed", "\n".join(original_lines(result)))


def _has_near_ties(distances: np.ndarray) -> bool:
    gaps = np.diff(np.sort(distances, axis=1), axis=1)
    return bool(((gaps > 0) & (gaps < 1e-6)).any())


def street2shop(fixture: Fixture, block: str) -> None:
    features = fixture.input(f"{block}/query_feats"), fixture.input(f"{block}/gallery_feats")
    products = fixture.input(f"{block}/query_product"), fixture.input(f"{block}/gallery_product")
    categories = fixture.input(f"{block}/query_class"), fixture.input(f"{block}/gallery_class")
    for precision in ("float64", "float32"):
        result: StreetResult = evaluate(*features, *products, "street2shop", *categories, names=CATEGORIES, precision=precision)
        fixture.compare(f"{block}/ap", result.average_precision, rtol=0, atol=1e-6, note=precision)
        fixture.exact(f"{block}/first_hit_rank", result.first_rank)
        fixture.compare(f"{block}/per_class_map_r1_r5_r10_r20_r50", result.table(), rtol=0, atol=1e-6, note=precision)
        fixture.compare(f"{block}/mean_all_classes", list(result.overall.values()), rtol=0, atol=1e-6)
        fixture.compare(f"{block}/mean_selected_classes", list((result.selected or {}).values()), rtol=0, atol=1e-6)
        fixture.exact(f"{block}/printed", "\n".join(original_lines(result)))


def one_ranking(fixture: Fixture, block: str) -> None:
    ap, curve = ranking_metrics(*(fixture.input(f"{block}/{key}") for key in ("ranked_index_1based", "good", "junk")))
    fixture.compare(f"{block}/ap", ap, rtol=0, atol=1e-12)
    fixture.exact(f"{block}/cmc", curve)
