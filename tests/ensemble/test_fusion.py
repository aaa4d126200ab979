"""Fusion against plain loops: normalisations, ranks with ties, folds, and the compact form that a search works on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ensemble.made_up import ANY, KEPT, REMOVED, made_queries, write_member, write_members
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.ensemble import fusion as fusion_module
from tf_fashion.ensemble.fusion import NORMALISATIONS, Fusion, normalise
from tf_fashion.ensemble.scores import CategoryScores, ScoredQuery, ScoreFile
from tf_fashion.ensemble.weights import assign_folds
from tf_fashion.retrieval.protocol import Protocol
from tf_fashion.retrieval.search import top_k_of_scores


def matrices(seed: int, rows: int, columns: int, levels: int | None) -> np.ndarray:
    scores = np.random.default_rng(seed).normal(size=(rows, columns))
    return (scores if levels is None else np.round(scores * levels)).astype(np.float32)


@given(st.integers(0, 99), st.integers(1, 6), st.integers(1, 30), st.sampled_from([None, 1, 3]))
@settings(max_examples=40, deadline=None)
def test_normalisations(seed: int, rows: int, columns: int, levels: int | None) -> None:
    scores = matrices(seed, rows, columns, levels)
    copy = scores.copy()
    found = {how: normalise(scores, how, 9.0) for how in NORMALISATIONS}
    assert (scores == copy).all() and all(value.dtype == np.float32 for value in found.values())
    for row in range(rows):
        line = scores[row].astype(np.float64)
        spread = line.std()
        wanted = np.zeros(columns) if spread == 0 else (line - line.mean()) / spread
        np.testing.assert_allclose(found["zscore"][row], wanted, atol=2e-5)
        below = np.array([(line < value).sum() + ((line == value).sum() - 1) / 2 for value in line])
        np.testing.assert_allclose(found["rank"][row], below / (columns - 1) if columns > 1 else [1.0], atol=1e-6)
    assert (found["cosine"] == scores).all() and (found["raw"] == scores * np.float32(9.0)).all()
    assert (normalise(scores, "raw") == scores).all()
    # What ties before ties afterwards.
    for value in found.values():
        assert ((scores[:, :, None] == scores[:, None, :]) <= (value[:, :, None] == value[:, None, :])).all()


def test_normalisations_of_half_precision_and_constant_rows() -> None:
    scores = np.array([[0.1] * 1000, [65504.0] * 1000], np.float16)
    assert (normalise(scores, "zscore") == 0).all() and (normalise(scores, "rank") == 0.5).all()
    with pytest.raises(UsageError, match="zscore, cosine, raw, rank; found 'softmax'"):
        normalise(scores, "softmax")


@given(st.integers(0, 999), st.integers(0, 5), st.integers(1, 12), st.integers(1, 14), st.sampled_from([None, 1, 2]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_top_k_of_scores_is_a_stable_sort(seed: int, rows: int, columns: int, k: int, levels: int | None, excluded: bool) -> None:
    scores = matrices(seed, rows, columns, levels)
    random = np.random.default_rng([seed, 1])
    exclude = random.integers(-1, columns, (rows, 3)) if excluded else None
    values, places = top_k_of_scores(scores, k, exclude)
    assert values.shape == places.shape == (rows, k) and values.dtype == np.float32
    for row in range(rows):
        gone = set() if exclude is None else set(exclude[row].tolist())
        wanted = [place for place in sorted(range(columns), key=lambda p: (-scores[row, p], p)) if place not in gone][:k]
        assert places[row].tolist() == wanted + [-1] * (k - len(wanted))
        assert values[row].tolist() == [scores[row, place] for place in wanted] + [-np.inf] * (k - len(wanted))


def test_top_k_of_many_scores_with_many_ties() -> None:
    for levels in (1, 3, 30):
        scores = matrices(5, 20, 3000, levels)
        scores[3] = 0.0
        order = np.argsort(-scores, axis=1, kind="stable")[:, :50]
        assert (top_k_of_scores(scores, 50)[1] == order).all()


def in_memory(parts: list[CategoryScores], protocol: Protocol) -> Fusion:
    members = [ScoreFile(Path(f"m{number}"), f"m{number}", protocol, 1.0, {"all": part}) for number, part in enumerate(parts)]
    return Fusion(members, "cosine")


def naive_rank(
    members: list[np.ndarray], weights: np.ndarray, part: CategoryScores, row: int, protocol: Protocol
) -> tuple[int, int, int]:
    """Rank by the stable rule, the best and the worst rank, in double precision."""
    fused = sum(float(weight) * member[row].astype(np.float64) for weight, member in zip(weights, members, strict=True))
    fused = np.round(np.asarray(fused), 9)
    query, gallery = part.queries[row], part.gallery
    target = str(query.target)
    label = (part.labels or {}).get(target) if protocol.hit == "any" else None
    right = [p for p, entry in enumerate(gallery) if entry == target or (label is not None and (part.labels or {})[entry] == label)]
    gone = {p for p, entry in enumerate(gallery) if protocol.reference == "removed" and entry == query.reference}
    right = [p for p in right if p not in gone]
    best = min(right, key=lambda p: (-fused[p], p))
    rivals = [p for p in range(len(gallery)) if p not in gone and p not in right]
    above = sum(fused[p] > fused[best] for p in rivals)
    tied = [p for p in rivals if fused[p] == fused[best]]
    return 1 + above + sum(p < best for p in tied), 1 + above, 1 + above + len(tied)


# Sums of these times small whole numbers are exact, so that ties of quantised scores are ties in every precision.
WEIGHTS = st.lists(st.sampled_from([0.0, 0.0, 0.25, 0.375, 0.6875, 1.0]), min_size=3, max_size=3).filter(any)


@given(
    st.integers(0, 999),
    st.integers(1, 12),
    st.integers(2, 40),
    st.sampled_from([None, 1, 2]),
    st.sampled_from(["kept", "removed", "any"]),
    WEIGHTS,
    st.integers(1, 400),
    st.integers(1, 3),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_ranks_against_a_loop(
    seed: int, rows: int, gallery: int, levels: int | None, kind: str, weights: list[float], block: int, groups: int
) -> None:
    protocol = {"kept": KEPT, "removed": REMOVED, "any": ANY}[kind].replace(ks=(1, gallery))
    queries = made_queries("all", rows, gallery, seed)
    labels = None
    if kind == "any":
        labels = {f"g{place}": f"label {place * 7 % 5}" for place in range(gallery)}
    scores = [matrices(seed + 1000 * member, rows, gallery, levels) for member in range(3)]
    if gallery > 4:
        # The same picture three times.
        for member in scores:
            member[:, [1, gallery - 1]] = member[:, [gallery // 2]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fusion_module, "_BLOCK_VALUES", block)
        patch.setattr(fusion_module, "_PART", 16)
        parts = [CategoryScores("all", queries, [f"g{place}" for place in range(gallery)], matrix, labels) for matrix in scores]
        part, given_weights = parts[0], np.array(weights)
        if levels is None:
            given_weights = given_weights * np.random.default_rng(seed).random(3)
        wanted = np.array([naive_rank(scores, given_weights, part, row, protocol) for row in range(rows)])
        fusion = in_memory(parts, protocol)
        for counts in fusion.counts("all", [given_weights, np.tile(given_weights, (rows, 1))]):
            assert np.stack([counts.ranks(tie) for tie in ("stable", "optimistic", "pessimistic")], axis=1).tolist() == wanted.tolist()
        chosen = np.random.default_rng(seed).integers(0, groups, rows)
        for cut in (gallery, 3):
            contests = in_memory(parts, protocol.replace(ks=(1, cut))).contests("all", chosen)
            assert sorted(contests) == sorted(set(chosen.tolist()))
            for group, contest in contests.items():
                ranks = np.minimum(contest.ranks(given_weights), cut + 1)
                assert ranks.tolist() == np.minimum(wanted[chosen == group, 0], cut + 1).tolist()
        values, places = fusion.top("all", given_weights, gallery + 2)
        for row, query in enumerate(queries):
            gone = {int(query.reference[1:])} if protocol.reference == "removed" else set()
            kept = places[row][places[row] >= 0]
            assert sorted(kept) == sorted(set(range(gallery)) - gone)
            pairs = [(-values[row, slot], place) for slot, place in enumerate(kept)]
            assert pairs == sorted(pairs)


def test_fused_scores_are_weighted_sums(tmp_path: Path) -> None:
    fusion = Fusion(write_members(tmp_path, {"dress": (9, 14), "shirt": (4, 6)}), "raw")
    weights = np.array([0.2, 0.0, 0.8])
    raw = [member.categories["dress"].scores * np.float32(member.scale or 1) for member in fusion.members]
    np.testing.assert_allclose(fusion.fused("dress", slice(2, 5), weights), (0.2 * raw[0] + 0.8 * raw[2])[2:5], rtol=1e-5)
    assert not fusion.fused("dress", slice(0, 2), np.zeros(3)).any()
    found, again = fusion.evaluate(weights, {"dress": np.tile(weights, (9, 1)), "shirt": np.tile(weights, (4, 1))})
    assert list(found) == fusion.categories == ["dress", "shirt"] and fusion.queries("shirt") == 4
    assert {c: r.recall for c, r in found.items()} == {c: r.recall for c, r in again.items()}
    one = Fusion(fusion.members[:1], "zscore").evaluate(np.ones(1))[0]
    alone = fusion.evaluate(np.array([1.0, 0.0, 0.0]))[0]
    assert one["dress"].ranks.tolist() == alone["dress"].ranks.tolist()


def test_fusion_refuses_what_cannot_be_fused(tmp_path: Path) -> None:
    members = write_members(tmp_path, {"dress": (5, 9)})
    with pytest.raises(UsageError, match="found 'best'"):
        Fusion(members, "best")
    for part in (Fusion(members, how) for how in NORMALISATIONS):
        part.check_finite()
    plain = write_member(tmp_path / "plain", {"dress": (made_queries("dress", 5, 9), np.zeros((5, 9), np.float32))}, scale=None)
    with pytest.raises(UsageError, match="plain: these scores are not cosines"):
        Fusion([*members, plain], "cosine")
    lost = [ScoredQuery(query.id, query.reference, "elsewhere") for query in made_queries("dress", 5, 9)]
    away = write_member(tmp_path / "away", {"dress": (lost, np.zeros((5, 9), np.float32))})
    with pytest.raises(DataError, match=r"target\(s\) are not in the gallery of 9 entries: 'elsewhere'"):
        Fusion([away]).evaluate(np.ones(1))


def category(queries: list[ScoredQuery]) -> CategoryScores:
    return CategoryScores("dress", queries, [], np.zeros((len(queries), 0)))


def test_folds_are_balanced_and_repeatable() -> None:
    part = category([ScoredQuery(f"q{row}", f"r{row}", f"t{row}") for row in range(203)])
    folds = assign_folds(part, 5, 3)
    assert sorted(np.bincount(folds)) == [40, 40, 41, 41, 41]
    assert (folds == assign_folds(part, 5, 3)).all()
    assert (folds != assign_folds(part, 5, 4)).any()


def test_queries_with_common_pictures_share_a_fold() -> None:
    random = np.random.default_rng(0)
    queries = []
    for group in range(60):
        for row in range(int(random.integers(1, 5))):
            # Chains: a target is the next query's reference.
            queries.append(ScoredQuery(f"{group}.{row}", f"p{group}.{row}", f"p{group}.{row + 1}"))
    random.shuffle(queries)  # type: ignore[arg-type]
    folds = assign_folds(category(queries), 4, 0)
    by_group = {query.id.split(".")[0]: set() for query in queries}
    for query, fold in zip(queries, folds, strict=True):
        by_group[query.id.split(".")[0]].add(int(fold))
    assert all(len(found) == 1 for found in by_group.values())
    sizes = np.bincount(folds, minlength=4)
    assert sizes.max() - sizes.min() <= 4


def test_a_long_chain_is_cut_between_targets() -> None:
    queries = [ScoredQuery(f"q{row}", f"p{row % 20}", f"p{(row * 7 + 1) % 20}") for row in range(100)]
    folds = assign_folds(category(queries), 5, 0)
    assert len(np.unique(folds)) == 5
    for target in {query.target for query in queries}:
        assert len({int(fold) for query, fold in zip(queries, folds, strict=True) if query.target == target}) == 1


def test_few_queries_leave_folds_empty() -> None:
    assert assign_folds(category([ScoredQuery("q", "r", "t")]), 5, 0).tolist() == [0]
    assert sorted(assign_folds(category([ScoredQuery(f"q{row}", f"r{row}", f"t{row}") for row in range(3)]), 5, 0)) == [0, 1, 2]
