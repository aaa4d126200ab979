"""Every loss against its contract and its naive twin."""

from functools import partial

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.losses import naive
from tests.parity.harness import run_file
from tests.shared import shared
from tf_fashion.core.errors import UsageError
from tf_fashion.losses import LOSSES
from tf_fashion.testing.contracts import run_loss_test, value_and_gradients

CASES = [
    ("batch_classification", {}, naive.batch_classification),
    ("batch_classification", {"mask_same_label": False}, partial(naive.batch_classification, mask=False)),
    (
        "batch_classification",
        {"directions": "both", "label_smoothing": 0.2, "scale": 2.0},
        partial(naive.batch_classification, direction="both", smoothing=0.2, scale=2.0),
    ),
    (
        "batch_classification",
        {"directions": "target_to_query", "chunk_size": 4},
        partial(naive.batch_classification, direction="target_to_query"),
    ),
    ("batch_classification", {"share_targets": True}, partial(naive.batch_classification, share=True)),
    ("chunked_infonce", {"chunk_size": 3}, partial(naive.batch_classification, direction="both")),
    (
        "chunked_infonce",
        {"chunk_size": 4, "share_targets": True, "label_smoothing": 0.1},
        partial(naive.batch_classification, direction="both", smoothing=0.1, share=True),
    ),
    ("sigmoid", {"chunk_size": 3}, naive.sigmoid),
    ("sigmoid", {"same_label": "negative"}, partial(naive.sigmoid, same_label="negative")),
    ("sigmoid", {"same_label": "positive", "chunk_size": 2}, partial(naive.sigmoid, same_label="positive")),
    ("batch_hard_triplet", {}, naive.batch_hard_triplet),
    ("batch_hard_triplet", {"squared": False, "margin": 0.2}, partial(naive.batch_hard_triplet, metric="l2", margin=0.2)),
    ("batch_hard_triplet", {"p": 1, "soft": True}, partial(naive.batch_hard_triplet, metric="l1", soft=True)),
    ("mined_triplet", {}, naive.mined_triplet),
    ("mined_triplet", {"miner": "multi_similarity", "average": "all"}, partial(naive.mined_triplet, epsilon=0.1, average_all=True)),
    ("soft_triplet", {}, naive.soft_triplet),
    ("supervised_contrastive", {}, naive.supervised_contrastive),
    ("supervised_contrastive", {"temperature": 0.05}, partial(naive.supervised_contrastive, temperature=0.05)),
    ("triplet_semihard", {}, naive.triplet_semihard),
    ("triplet_semihard", {"distance": "squared_l2", "margin": 0.3}, partial(naive.triplet_semihard, metric="squared_l2", margin=0.3)),
    ("triplet_hard", {}, naive.triplet_hard),
    ("triplet_hard", {"soft": True, "distance": "angular"}, partial(naive.triplet_hard, soft=True, metric="angular")),
    ("lifted_structure", {}, naive.lifted_structure),
    ("npairs", {}, naive.npairs),
    ("contrastive", {"margin": 2.0}, partial(naive.contrastive, margin=2.0)),
    ("bidirectional_matching", {}, naive.bidirectional_matching),
    (
        "bidirectional_matching",
        {"semi_hard": "column", "legacy_duplicate_negatives": True, "margin": 0.5},
        partial(naive.bidirectional_matching, semi_hard="column", duplicates=True, margin=0.5),
    ),
    ("bidirectional_matching", {"semi_hard": None}, partial(naive.bidirectional_matching, semi_hard=None)),
]


# Of each loss the first case is among the quick tests.
FIRST = {name: number for number, (name, _, _) in reversed(list(enumerate(CASES)))}
PARAMS = [
    pytest.param(*case, marks=() if FIRST[case[0]] == number and "chunk_size" not in case[1] else pytest.mark.slow)
    for number, case in enumerate(CASES)
]


@pytest.mark.parametrize(("name", "options", "reference"), PARAMS, ids=lambda value: str(value) if not callable(value) else "")
def test_contract(name, options, reference, mirrored):
    first = next(case for case in CASES if case[0] == name)
    # One variant per loss on two replicas: tracing for replicas takes most of the time.
    run_loss_test(LOSSES.get(name), options, reference, strategy=mirrored if first[1] == options else None)


def test_every_loss_has_a_case():
    assert set(LOSSES) == {name for name, _, _ in CASES} | {"match_embedding"}


def test_match_embedding(mirrored):
    def embeddings(random, rows):
        table = random.normal(size=(rows, 6)).astype(np.float32)
        table[rows // 2 + 1 :] = 0
        return table

    run_loss_test(LOSSES.get("match_embedding"), {}, naive.match_embedding, labels=embeddings, strategy=mirrored)


@settings(deadline=None, max_examples=12)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=8),
    name=st.sampled_from(["batch_hard_triplet", "triplet_semihard", "triplet_hard", "lifted_structure", "soft_triplet", "npairs"]),
    seed=st.integers(0, 1000),
)
def test_any_labels(labels, name, seed):
    random = np.random.default_rng(seed)
    q, t = (random.normal(size=(len(labels), 3)).astype(np.float32) for _ in range(2))
    y = np.asarray(labels)
    value, gradients = value_and_gradients(LOSSES.get(name)(), y, q, t)
    np.testing.assert_allclose(value, getattr(naive, name)(y, q, t), rtol=1e-4, atol=1e-5)
    assert all(np.isfinite(g).all() for g in gradients)


@settings(deadline=None, max_examples=10)
@given(
    rows=st.integers(1, 13),
    chunk=st.integers(1, 16),
    smoothing=st.sampled_from([0.0, 0.1]),
    directions=st.sampled_from(["query_to_target", "target_to_query", "both"]),
    mask=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_chunks_change_nothing(rows, chunk, smoothing, directions, mask, seed):
    random = np.random.default_rng(seed)
    q, t = (random.normal(size=(rows, 5)).astype(np.float32) for _ in range(2))
    y = random.integers(0, 6, rows)
    options = {"directions": directions, "mask_same_label": mask, "label_smoothing": smoothing}
    plain, plain_gradients = value_and_gradients(LOSSES.get("batch_classification")(**options), y, q, t)
    ours, gradients = value_and_gradients(LOSSES.get("batch_classification")(chunk_size=chunk, **options), y, q, t)
    np.testing.assert_allclose(ours, plain, rtol=1e-6, atol=1e-6)
    for a, b in zip(gradients, plain_gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_chunks_inside_a_function_of_unknown_batch_size():
    loss = LOSSES.get("chunked_infonce")(chunk_size=4)
    signature = [tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, 3]), tf.TensorSpec([None, 3])]
    step = tf.function(lambda y, q, t: value_and_gradients(loss, y, q, t), input_signature=signature)
    random = np.random.default_rng(0)
    q, t = (random.normal(size=(10, 3)).astype(np.float32) for _ in range(2))
    value, gradients = step(np.arange(10), q, t)
    wanted, wanted_gradients = value_and_gradients(LOSSES.get("batch_classification")("both"), np.arange(10), q, t)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    np.testing.assert_allclose(gradients[0], wanted_gradients[0], atol=1e-6)
    np.testing.assert_allclose(gradients[1], wanted_gradients[1], atol=1e-6)


def test_labels_stay_integers():
    # As float32 these two would be the same label.
    y = np.array([2**24, 2**24 + 1], dtype=np.int64)
    q = np.eye(2, dtype=np.float32)
    masked = LOSSES.get("batch_classification")()(y, {"query": q, "target": q})
    assert float(masked) > 0.1


def test_sample_weight_and_reductions():
    random = np.random.default_rng(0)
    q, t = (random.normal(size=(4, 3)).astype(np.float32) for _ in range(2))
    pred, y = {"query": q, "target": t}, np.arange(4)
    rows = LOSSES.get("batch_classification")(reduction="none")(y, pred)
    assert rows.shape == (4,)
    np.testing.assert_allclose(LOSSES.get("batch_classification")(reduction="sum")(y, pred), np.sum(rows), rtol=1e-6)
    weighted = LOSSES.get("batch_classification")()(y, pred, sample_weight=[1.0, 0.0, 2.0, 0.0])
    np.testing.assert_allclose(weighted, (rows[0] + 2 * rows[2]) / 4, rtol=1e-6)


def test_sets_take_one_tensor():
    random = np.random.default_rng(1)
    x = random.normal(size=(6, 4)).astype(np.float32)
    y = np.array([0, 1, 0, 2, 1, 2])
    for name in ("triplet_semihard", "triplet_hard", "lifted_structure", "batch_hard_triplet"):
        # The naive twins take pairs: the first three rows as queries, the others, put in the same order, as targets.
        order = [2, 4, 5]
        wanted = getattr(naive, name)(np.array([0, 1, 2]), x[[0, 1, 3]], x[order])
        np.testing.assert_allclose(LOSSES.get(name)()(y, x), wanted, rtol=1e-4, err_msg=name)


def test_soft_triplet_draws_the_same_triplets_again():
    random = np.random.default_rng(2)
    q, t = (random.normal(size=(6, 3)).astype(np.float32) for _ in range(2))
    loss = LOSSES.get("soft_triplet")(triplets_per_anchor=3, seed=5)
    first = float(loss(np.arange(6), {"query": q, "target": t}))
    assert first == float(loss(np.arange(6), {"query": q, "target": t}))
    assert first != float(LOSSES.get("soft_triplet")(triplets_per_anchor=3, seed=6)(np.arange(6), {"query": q, "target": t}))
    every = LOSSES.get("soft_triplet")(triplets_per_anchor=100)(np.arange(6), {"query": q, "target": t})
    np.testing.assert_allclose(every, naive.soft_triplet(np.arange(6), q, t), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("batch_classification", {"directions": "up"}),
        ("batch_classification", {"label_smoothing": 1.0}),
        ("batch_classification", {"chunk_size": 0}),
        ("batch_hard_triplet", {"p": 3}),
        ("batch_hard_triplet", {"legacy_log": True}),
        ("triplet_hard", {"distance": "cosine"}),
        ("soft_triplet", {"triplets_per_anchor": 0}),
        ("npairs", {"reduction": "mean_with_sample_weight"}),
    ],
)
def test_wrong_options(name, options):
    with pytest.raises(UsageError):
        LOSSES.get(name)(**options)


def test_missing_target_is_named():
    with pytest.raises(UsageError, match="'query' and 'target'"):
        LOSSES.get("npairs")()(np.arange(2), {"query": np.eye(2)})


@pytest.mark.parametrize("file", ["fashioniq2020/losses_nashory", "fashioniq2020/losses_tirg", "tfa/metric_learning"])
def test_recorded_numbers(file):
    import tests.parity.checks.losses  # noqa: F401

    fixture = run_file(shared(f"golden/{file}.npz"))
    assert fixture.comparisons and [str(c) for c in fixture.comparisons if not c.ok] == []
    assert fixture.uncovered() == {}
