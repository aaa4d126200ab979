"""Image-text retrieval against naive loops; what is drawn under which protocol; results that may not be compared."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.reports.tables import comparison_table, results_table, seeds_table
from tf_fashion.retrieval.dual import dual_truth, evaluate_dual, summarise_dual
from tf_fashion.retrieval.dual_protocol import DUAL_PROTOCOLS, DualProtocol, get_dual_protocol
from tf_fashion.retrieval.protocol import compare_results, get_protocol, read_protocol

RELAXED = settings(max_examples=40, deadline=None)


def problem(seed=0, images=40, texts=30, dim=5, levels=None):
    """Embeddings and many-to-many truth; with `levels`, whole numbers, so that many scores are equal."""
    rng = np.random.default_rng(seed)
    sides = [rng.standard_normal((n, dim)) if levels is None else rng.integers(-levels, levels + 1, (n, dim)) for n in (images, texts)]
    image_ids, text_ids = [f"i{n}" for n in range(images)], list(range(100, 100 + texts))
    truth = {t: rng.choice(image_ids, rng.integers(1, min(4, images) + 1), replace=False).tolist() for t in text_ids}
    return {
        "image_embeddings": sides[0].astype(np.float32),
        "image_ids": image_ids,
        "text_embeddings": sides[1].astype(np.float32),
        "text_ids": text_ids,
        "text_truth": truth,
    }


def inverse(truth):
    inverted = {}
    for query, right in truth.items():
        for entry in right:
            inverted.setdefault(entry, []).append(query)
    return inverted


def naive_rank(query, gallery, gallery_ids, right, tie):
    scores = [np.float32(query.astype(np.float64) @ row.astype(np.float64)) for row in gallery]
    late = {"stable": lambda entry: 0, "optimistic": lambda entry: entry not in right, "pessimistic": lambda entry: entry in right}[tie]
    order = sorted(range(len(scores)), key=lambda place: (-scores[place], late(gallery_ids[place]), place))
    return next(rank for rank, place in enumerate(order, 1) if gallery_ids[place] in right)


@RELAXED
@given(
    seed=st.integers(0, 1000),
    images=st.integers(1, 12),
    texts=st.integers(1, 12),
    levels=st.sampled_from([None, 1]),
    tie=st.sampled_from(["stable", "optimistic", "pessimistic"]),
    block=st.integers(1, 9),
)
def test_ranks_among_all_against_a_naive_loop(seed, images, texts, levels, tie, block):
    p = problem(seed, images, texts, 3, levels)
    result = evaluate_dual(**p, protocol=get_dual_protocol("full", tie=tie), block=block)
    sides = (
        (result.text_to_image, p["text_truth"], p["text_ids"], p["text_embeddings"], p["image_ids"], p["image_embeddings"]),
        (result.image_to_text, inverse(p["text_truth"]), p["image_ids"], p["image_embeddings"], p["text_ids"], p["text_embeddings"]),
    )
    for side, truth, ids, queries, gallery_ids, gallery in sides:
        (draw,) = side.draws
        assert set(draw.queries) == {str(entry) for entry in truth}
        row = {str(entry): n for n, entry in enumerate(ids)}
        named = {str(entry): right for entry, right in truth.items()}
        naive = [naive_rank(queries[row[q]], gallery, gallery_ids, named[q], tie) for q in draw.queries]
        assert draw.counts.ranks(tie).tolist() == naive
        mean = side.mean
        for k in (1, 5, 10):
            assert mean[f"R@{k}"] == pytest.approx(100 * np.mean([rank <= k for rank in naive]))
        assert mean["MRR"] == pytest.approx(np.mean([1 / rank for rank in naive]))
        assert mean["median_rank"] == np.median(naive)
        assert mean["mean"] == pytest.approx(np.mean([mean[f"R@{k}"] for k in (1, 5, 10)]))
        assert side.spread is None


def test_identical_right_answers_are_no_rivals_of_each_other():
    same = np.ones((3, 2), np.float32)
    truth = {"t": ["b", "c"], "u": ["c"], "v": ["a"]}
    result = evaluate_dual(same, ["a", "b", "c"], same, ["t", "u", "v"], text_truth=truth, protocol=get_dual_protocol("full", ks=(1,)))
    side = result.text_to_image
    assert side.draws[0].counts.ranks("stable").tolist() == [2, 3, 1]
    assert side.draws[0].counts.ranks("optimistic").tolist() == [1, 1, 1]
    assert side.draws[0].counts.ranks("pessimistic").tolist() == [2, 3, 3]
    interval = summarise_dual(result)["categories"]["text to image"]["interval"]
    assert interval["R@1"] == [0.0, 100.0]


def sampled_problem(seed=1, images=400, texts=120):
    p = problem(seed, images, texts, 8)
    groups = {entry: "few" if n < 12 else f"g{n % 3}" for n, entry in enumerate(p["image_ids"])}
    # Right pictures of a text share a group, as views of one product do.
    by_group = {}
    for entry, group in groups.items():
        by_group.setdefault(group, []).append(entry)
    rng = np.random.default_rng(seed)
    p["text_truth"] = {
        t: rng.choice(by_group[["few", "g0", "g1", "g2"][n % 4]], 3, replace=False).tolist() for n, t in enumerate(p["text_ids"])
    }
    return p, groups


@pytest.mark.parametrize("fill", ["other", "fewer"])
def test_candidates_share_the_group_and_are_never_right(fill, monkeypatch):
    from tf_fashion.retrieval import dual

    p, groups = sampled_problem()
    seen = []
    real = dual._draw

    def spy(random, pool, count, without):
        drawn = real(random, pool, count, without)
        seen.append((pool, drawn, without))
        return drawn

    monkeypatch.setattr(dual, "_draw", spy)
    protocol = get_dual_protocol("sample", queries=60, negatives=20, repeats=2, fill=fill)
    result = evaluate_dual(**p, protocol=protocol, groups=groups)
    for pool, drawn, without in seen:
        assert len(set(drawn.tolist())) == len(drawn) and not set(drawn.tolist()) & set(without.tolist())
        assert set(drawn.tolist()) <= set(pool.tolist())
    draw = result.text_to_image.draws[0]
    truth = {str(t): right for t, right in p["text_truth"].items()}
    few = np.array([groups[truth[q][0]] == "few" for q in draw.queries])
    # Nine pictures of the small group are wrong ones; the others come from elsewhere, or are left out.
    assert (draw.filled[~few] == 0).all() and (draw.candidates[~few] == 21).all()
    assert (draw.filled[few] == (11 if fill == "other" else 0)).all()
    assert (draw.candidates[few] == (21 if fill == "other" else 10)).all()
    metrics = summarise_dual(result)["categories"]["text to image"]
    assert metrics["filled_queries"] == (np.mean([(d.filled > 0).sum() for d in result.text_to_image.draws]) if fill == "other" else 0)
    assert metrics["fewest_candidates"] == (21 if fill == "other" else 10)
    assert metrics["queries"] == 60 and metrics["gallery"] == 21


def test_sampled_ranks_against_the_scores_of_their_candidates(monkeypatch):
    from tf_fashion.retrieval import dual

    p, groups = sampled_problem(3)
    p["image_embeddings"] = np.round(p["image_embeddings"])
    p["text_embeddings"] = np.round(p["text_embeddings"])
    calls = []
    real = dual._pair_scores
    monkeypatch.setattr(dual, "_pair_scores", lambda *a: calls.append((a, real(*a))) or calls[-1][1])
    result = evaluate_dual(**p, protocol=get_dual_protocol("sample", queries=50, negatives=30, repeats=1), groups=groups)
    for side, ((_, _, rows, right, _), _), ((queries, gallery, owners, columns, _), _) in zip(
        result.directions, calls[::2], calls[1::2], strict=True
    ):
        for n, row in enumerate(rows.tolist()):
            candidates = sorted([int(right[n]), *columns[(owners == row)].tolist()])
            naive = naive_rank(queries[row], gallery[candidates], candidates, {int(right[n])}, "stable")
            assert side.draws[0].counts.ranks()[n] == naive


def test_draws_are_repeatable_differ_and_have_a_spread():
    p, groups = sampled_problem()
    protocol = get_dual_protocol("sample", queries=40, negatives=10, repeats=3)
    first, again = (evaluate_dual(**p, protocol=protocol, groups=groups) for _ in range(2))
    other = evaluate_dual(**p, protocol=protocol.replace(seed=1), groups=groups)
    assert summarise_dual(first) == summarise_dual(again)
    queries = [draw.queries for draw in first.text_to_image.draws]
    assert queries[0] != queries[1] and queries[0] != other.text_to_image.draws[0].queries
    values = [first.text_to_image.measures(draw)["R@5"] for draw in first.text_to_image.draws]
    assert first.text_to_image.spread["R@5"] == pytest.approx(np.std(values, ddof=1))
    assert first.text_to_image.mean["R@5"] == pytest.approx(np.mean(values))
    # With as many queries as there are, each one is asked in every draw.
    every = evaluate_dual(**p, protocol=protocol.replace(queries=10**6), groups=groups)
    assert all(len(draw.queries) == 120 for draw in every.text_to_image.draws)


def test_chance_is_what_it_must_be():
    p, groups = sampled_problem(5, 3000, 900)
    rng = np.random.default_rng(0)
    p["image_embeddings"] = rng.standard_normal((3000, 16))
    p["text_embeddings"] = rng.standard_normal((900, 16))
    groups = dict.fromkeys(p["image_ids"], "all")
    side = evaluate_dual(**p, protocol=get_dual_protocol("sample", queries=900, repeats=5), groups=groups).text_to_image
    assert side.mean["R@10"] == pytest.approx(10, abs=2)
    assert side.mean["median_rank"] == pytest.approx(50.5, abs=3)


def test_a_subset_is_ranked_within_itself():
    p = problem(2, 60, 50)
    result = evaluate_dual(**p, protocol=get_dual_protocol("subset-1k", subset=10, repeats=2))
    for draw_images, draw_texts in zip(result.image_to_text.draws, result.text_to_image.draws, strict=True):
        chosen = draw_images.queries
        assert len(chosen) == 10
        texts = [t for t in p["text_ids"] if set(p["text_truth"][t]) & set(chosen)]
        assert draw_texts.queries == [str(t) for t in texts]
        assert draw_images.candidates.tolist() == [len(texts)] * 10
        rows = [p["image_ids"].index(entry) for entry in chosen]
        for n, text in enumerate(texts):
            right = set(p["text_truth"][text])
            query = p["text_embeddings"][p["text_ids"].index(text)]
            assert draw_texts.counts.ranks()[n] == naive_rank(query, p["image_embeddings"][rows], chosen, right, "stable")


def test_ids_are_compared_as_strings_and_truth_may_come_from_either_side():
    p = problem()
    forward = evaluate_dual(**p)
    truth = p.pop("text_truth")
    backward = evaluate_dual(**p, image_truth={i: [str(t) for t in texts] for i, texts in inverse(truth).items()})
    both = evaluate_dual(**p, image_truth=inverse(truth), text_truth={str(t): right for t, right in truth.items()})
    results = [summarise_dual(result)["categories"] for result in (forward, backward, both)]
    assert results[0] == results[1] == results[2]
    assert (
        len(
            {
                dual_truth(p["image_ids"], p["text_ids"], truth).fingerprint,
                dual_truth(p["image_ids"], p["text_ids"], None, inverse(truth)).fingerprint,
            }
        )
        == 1
    )


def test_what_cannot_be_measured_is_refused():
    p = problem()
    with pytest.raises(UsageError, match="right answers are missing"):
        evaluate_dual(**{**p, "text_truth": None})
    with pytest.raises(DataError, match="1 of 1 texts of the truth have no embedding: '7'"):
        evaluate_dual(**{**p, "text_truth": {7: ["i0"]}})
    with pytest.raises(DataError, match="1 right pictures of the truth have no embedding: 'x'"):
        evaluate_dual(**{**p, "text_truth": {100: ["i0", "x"]}})
    with pytest.raises(DataError, match="has no right picture"):
        evaluate_dual(**{**p, "text_truth": {100: []}})
    with pytest.raises(DataError, match="more than once: 'i0'"):
        evaluate_dual(**{**p, "image_ids": ["i0"] * 40})
    with pytest.raises(UsageError, match="40, width"):
        evaluate_dual(**{**p, "image_embeddings": np.ones((3, 5))})
    with pytest.raises(UsageError, match="5 wide, those of texts 4"):
        evaluate_dual(**{**p, "text_embeddings": np.ones((30, 4))})
    with pytest.raises(UsageError, match="give the group of each picture"):
        evaluate_dual(**p, protocol="sample")
    with pytest.raises(DataError, match="39 of 40 pictures have no sub-category"):
        evaluate_dual(**p, protocol="sample", groups={"i0": "a"})
    p["image_embeddings"][3, 1] = np.nan
    with pytest.raises(DataError, match="NaN"):
        evaluate_dual(**p)


def test_protocols_are_values():
    for name in DUAL_PROTOCOLS:
        protocol = DUAL_PROTOCOLS.get(name)
        assert read_protocol(protocol.to_config()) == protocol
        assert protocol.describe().startswith(f"{name}: fashion_gen/val")
    full, sample = get_dual_protocol("full"), get_dual_protocol("sample")
    assert full.fingerprint == full.replace(name="x", negatives=3, seed=9, ks=(2,)).fingerprint
    assert (
        len({p.fingerprint for p in (full, sample, sample.replace(negatives=100), sample.replace(seed=1), sample.replace(group=None))})
        == 5
    )
    assert get_dual_protocol("sample-101").fingerprint == sample.replace(negatives=100).fingerprint
    for wrong in (
        {"candidates": "x"},
        {"negatives": 0},
        {"seed": -1},
        {"ks": ()},
        {"tie": "expected"},
        {"repeats": True},
        {"group": ""},
    ):
        with pytest.raises(UsageError):
            DualProtocol("x", **wrong)
    with pytest.raises(UsageError):
        DualProtocol.from_config({"name": "x", "gallery": "split"})


def test_results_of_different_protocols_stand_in_no_common_table():
    p, groups = sampled_problem()
    full = summarise_dual(evaluate_dual(**p), {"name": "a"})
    sample = summarise_dual(
        evaluate_dual(**p, protocol=get_dual_protocol("sample", negatives=9, queries=30), groups=groups), {"name": "b"}
    )
    with pytest.raises(UsageError, match="different protocols"):
        compare_results([full, sample])
    with pytest.raises(UsageError, match="different protocols"):
        compare_results([full, {"protocol": get_protocol("original").to_config(), "mean": full["mean"]}])
    assert "text to image" in results_table(full) and "1 right and 9 wrong candidates" in results_table(sample)
    assert comparison_table([full, full], ["one", "two"]).count("\n") == 4
    assert "±" in seeds_table({"m": [full, full]})
