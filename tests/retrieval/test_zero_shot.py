"""Zero-shot classification, and the tasks of a leaderboard, against naive loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.retrieval.leaderboard import LeaderboardTask, evaluate_task, leaderboard_tasks
from tf_fashion.retrieval.zero_shot import FASHION_TEMPLATES, class_embeddings, classify, evaluate_zero_shot, score_classes

RELAXED = settings(max_examples=40, deadline=None)


def embed(sentences):
    """A fixed random vector per sentence, of a length that differs."""
    rows = []
    for sentence in sentences:
        rng = np.random.default_rng(list(sentence.encode()))
        rows.append(rng.standard_normal(6) * rng.uniform(0.1, 10))
    return np.array(rows)


def test_a_class_is_the_renormalised_mean_of_unit_sentences():
    names = ["dress", "running shoe"]
    ours = class_embeddings(names, embed)
    for row, name in zip(ours, names, strict=True):
        units = [v / np.linalg.norm(v) for v in embed([t.replace("{}", name) for t in FASHION_TEMPLATES])]
        mean = np.mean(units, axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), rtol=1e-6)
    assert ours.dtype == np.float32


def test_templates_have_one_place_each_and_names_are_put_in_as_they_are():
    assert all(t.count("{}") == 1 for t in FASHION_TEMPLATES) and len(set(FASHION_TEMPLATES)) == len(FASHION_TEMPLATES)
    seen = []
    class_embeddings(["{0} & {x}"], lambda s: seen.extend(s) or np.ones((len(s), 2)), ["a {}"])
    assert seen == ["a {0} & {x}"]
    for templates in ((), ("none",), ("{} {}",), "a {}"):
        with pytest.raises(UsageError, match="Templates"):
            class_embeddings(["a"], embed, templates)
    for names in ([], ["a", "a"], [" "]):
        with pytest.raises(UsageError, match="Class names"):
            class_embeddings(names, embed)
    with pytest.raises(UsageError, match="8 rows"):
        class_embeddings(["a"], lambda s: np.ones((3, 2)))
    with pytest.raises(DataError, match="zero"):
        class_embeddings(["a"], lambda s: np.zeros((len(s), 2)))


@RELAXED
@given(seed=st.integers(0, 10**6), count=st.integers(1, 60), classes=st.integers(1, 6))
def test_scores_are_those_of_counting_class_by_class(seed, count, classes):
    rng = np.random.default_rng(seed)
    names = [f"c{n}" for n in range(classes)]
    right, predicted = rng.integers(0, classes, count), rng.integers(0, classes, count)
    scores = score_classes(names, [names[n] for n in right], predicted)
    f1 = []
    for c in range(classes):
        hits, found, there = (right == c) & (predicted == c), predicted == c, right == c
        p = hits.sum() / found.sum() if found.any() else 0.0
        r = hits.sum() / there.sum() if there.any() else 0.0
        f1.append(2 * p * r / (p + r) if p + r else 0.0)
        assert (scores.precision[c], scores.recall[c], scores.support[c]) == pytest.approx((p, r, there.sum()))
        assert [scores.confusion[c, other] for other in range(classes)] == [(there & (predicted == o)).sum() for o in range(classes)]
    np.testing.assert_allclose(scores.f1, f1)
    assert scores.accuracy == pytest.approx(np.mean(right == predicted))
    assert scores.weighted_f1 == pytest.approx(np.mean([f1[c] for c in right]))
    assert scores.macro_f1 == pytest.approx(np.mean([f1[c] for c in set(right) | set(predicted)]))
    assert scores.summary()["images"] == count


def test_f1_as_scikit_learn_1_9_gave_it():
    scores = score_classes(list("abcd"), list("aabbbbcccd"), [0, 1, 1, 1, 2, 3, 2, 2, 0, 1])
    assert scores.weighted_f1 == pytest.approx(0.5)
    assert scores.macro_f1 == pytest.approx(0.41666666666666663)


def test_pictures_near_a_class_get_it_and_words_may_stand_for_names():
    names = ["tshirts", "heels"]
    said = {"tshirts": "t-shirt"}
    centres = class_embeddings(["t-shirt", "heels"], embed)
    rng = np.random.default_rng(0)
    labels = ["tshirts"] * 20 + ["heels"] * 5
    images = centres[[0] * 20 + [1] * 5] * 7 + rng.standard_normal((25, 6)) * 0.1
    scores = evaluate_zero_shot(images, labels, embed, names, say=said)
    assert scores.accuracy == scores.weighted_f1 == scores.macro_f1 == 1.0 and not scores.mistakes()
    assert evaluate_zero_shot(images, labels, embed, say=said).names == ("heels", "tshirts")
    swapped = score_classes(names, labels, [1] * 3 + [0] * 22)
    assert swapped.mistakes() == [("heels", "tshirts", 5), ("tshirts", "heels", 3)]
    numbers, cosines = classify(images, centres, 2)
    assert sorted(numbers[0]) == [0, 1] and cosines[0, 0] >= cosines[0, 1] and np.abs(cosines).max() <= 1 + 1e-6
    with pytest.raises(UsageError, match="number of classes"):
        classify(images, centres, 3)
    with pytest.raises(DataError, match="no class names: 'hat'"):
        score_classes(names, ["hat"], [0])


def catalogue(seed, count):
    rng = np.random.default_rng(seed)
    records = [
        {"text": f"t{rng.integers(0, max(1, count // 2))}", "category": f"c{rng.integers(0, 3)}", "sub": rng.choice(["", "s1", "s2"])}
        for _ in range(count)
    ]
    return records, rng.standard_normal((count, 6)), rng.standard_normal((count, 6))


def naive_task(task, records, images, texts):
    unit = lambda x: x / np.linalg.norm(x)  # noqa: E731
    documents = [unit(unit(i) * (1 - task.text_weight) + unit(t) * task.text_weight) for i, t in zip(images, texts, strict=True)]
    values = {"at1": [], "at10": [], "mrr": []}
    for query in dict.fromkeys(r[task.column] for r in records if r[task.column]):
        vector = unit(embed([query])[0])
        order = sorted(range(len(records)), key=lambda n: (-np.float32(vector @ documents[n]), n))[:10]
        right = [records[n][task.column] == query for n in order]
        total = sum(r[task.column] == query for r in records) if task.kind == "recall" else None
        values["at1"].append(sum(right[:1]) / (total or 1))
        values["at10"].append(sum(right) / (total or 10))
        values["mrr"].append(next((1 / rank for rank, hit in enumerate(right, 1) if hit), 0.0))
    return {key: np.mean(value) for key, value in values.items()}


@RELAXED
@given(seed=st.integers(0, 10**6), count=st.integers(1, 40))
def test_tasks_of_the_leaderboard_against_naive_loops(seed, count):
    records, images, texts = catalogue(seed, count)
    tasks = leaderboard_tasks(sub_category="sub" if any(r["sub"] for r in records) else None)
    for task in tasks:
        ours = evaluate_task(task, records, images, embed, texts)
        naive = naive_task(task, records, images, texts)
        name = "Recall" if task.kind == "recall" else "P"
        assert ours[f"{name}@1"] == pytest.approx(naive["at1"])
        assert ours[f"{name}@10"] == pytest.approx(naive["at10"])
        assert ours["MRR"] == pytest.approx(naive["mrr"])
        assert ours[f"Avg{name}"] == pytest.approx((naive["at1"] + naive["at10"]) / 2)


def test_queries_are_drawn_repeatably_and_wrong_input_is_refused():
    records, images, texts = catalogue(1, 200)
    few = LeaderboardTask("t", "text", "recall", max_queries=7)
    assert evaluate_task(few, records, images, embed) == evaluate_task(few, records, images, embed)
    assert evaluate_task(few, records, images, embed)["queries"] == 7
    assert few.fingerprint != LeaderboardTask("t", "text", "recall").fingerprint
    with pytest.raises(UsageError, match="mixes texts"):
        evaluate_task(leaderboard_tasks()[1], records, images, embed)
    with pytest.raises(UsageError, match="one row per record"):
        evaluate_task(few, records, images[:3], embed)
    with pytest.raises(DataError, match="no column 'x'"):
        evaluate_task(LeaderboardTask("t", "x", "recall"), records, images, embed)
    with pytest.raises(DataError, match="blank everywhere"):
        evaluate_task(few, [{"text": " "}] * 200, images, embed)
    with pytest.raises(UsageError, match="kind"):
        LeaderboardTask("t", "x", "both")
