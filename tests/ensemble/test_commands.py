"""`tf-fashion scores` and `tf-fashion ensemble`, from small members and a small model to the submission."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("keras_tuner")

from tests.ensemble.made_up import ANY, KEPT, REMOVED, made_queries, write_member, write_members
from tf_fashion.cli import main
from tf_fashion.core.errors import DataError, TfFashionError, UsageError
from tf_fashion.datasets.wardrobe import draw_wardrobe
from tf_fashion.encoders.image import ImageEncoder
from tf_fashion.encoders.text import TEXT_ENCODERS
from tf_fashion.ensemble.fusion import Fusion
from tf_fashion.ensemble.scores import ScoreFile, open_scores
from tf_fashion.ensemble.weights import assign_folds, fit_weights
from tf_fashion.inputs.text import WordTokenizer
from tf_fashion.models import ComposedRetriever
from tf_fashion.retrieval.protocol import summarise
from tf_fashion.training.ensembling import EnsembleConfig, build_ensemble

VAL, TEST = {"dress": (40, 60), "shirt": (25, 30), "tiny": (1, 5)}, {"shirt": (6, 30), "dress": (8, 70), "tiny": (2, 5)}
FILES = ("ensemble.json", "metrics.json", "contributions.png", "ranking.val.json", "ranking.test.json")


def names(members: list[ScoreFile]) -> tuple[str, ...]:
    return tuple(str(member.folder) for member in members)


def content(path: Path) -> Any:
    return json.loads(path.read_text())


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EnsembleConfig, dict[str, Any]]:
    root = tmp_path_factory.mktemp("made")
    val = write_members(root / "val", VAL, protocol=REMOVED)
    test = write_members(root / "test", TEST, protocol=REMOVED, split="test", targets=False)
    config = EnsembleConfig(names(val), str(root / "out"), names(test), trials=12, folds=3, seed=1, progress=False)
    return root, config, build_ensemble(config)


def test_what_an_ensemble_leaves(made: tuple[Path, EnsembleConfig, dict[str, Any]]) -> None:
    root, config, result = made
    out = root / "out"
    assert all((out / name).is_file() for name in FILES)
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, "fused", "search", "submission"])
    assert result == content(out / "ensemble.json")
    assert [member["name"] for member in result["members"]] == ["m0", "m1", "m2"]
    weights = np.array(result["run"]["weights"])
    assert weights.shape == (3,) and weights.min() >= 0 and np.isclose(weights.sum(), 1)
    assert np.allclose([member["weight"] for member in result["members"]], weights)
    assert result["protocol"]["fingerprint"] == REMOVED.fingerprint and result["run"]["folds"] == 3
    with Image.open(out / "contributions.png") as picture:
        picture.load()
        assert picture.format == "PNG" and min(picture.size) > 100
    metrics = content(out / "metrics.json")
    assert metrics["mean"] == result["cross_fitted"] and "cross-fitted" in metrics["run"]["measured"]
    assert set(metrics["categories"]) == set(VAL) and metrics["categories"]["dress"]["queries"] == 40


def test_numbers_are_those_of_the_fusion(made: tuple[Path, EnsembleConfig, dict[str, Any]]) -> None:
    root, config, result = made
    fusion = Fusion([open_scores(folder) for folder in config.members])

    def mean(weights: Any) -> dict[str, float]:
        return summarise(fusion.evaluate(weights)[0], fusion.protocol)["mean"]

    weights = np.array(result["run"]["weights"])
    assert result["on_its_own_queries"] == mean(weights) and result["equal"] == mean(np.ones(3) / 3)
    for number, member in enumerate(result["members"]):
        assert member["alone"] == member["mean"] == mean(np.eye(3)[number])["mean"]
        assert member["without"] == mean(np.where(np.arange(3) == number, 0, weights))["mean"]
    # Weights found on a fold's own queries cannot do worse there than each start of the search.
    assert (
        result["on_its_own_queries"]["mean"] >= max(result["equal"]["mean"], *(member["alone"] for member in result["members"])) - 1e-9
    )


def test_a_query_is_measured_with_weights_that_were_found_without_it(tmp_path: Path) -> None:
    members = write_members(tmp_path / "m", {"dress": (60, 90)}, growth=0.0)
    options = {"trials": 8, "folds": 3, "seed": 2, "progress": False}
    fitted = fit_weights(Fusion(members), tmp_path / "a", **options)
    # With other scores for the queries of fold 0, the weights that were found without them stay what they are.
    rows = assign_folds(members[0].categories["dress"], 3, 2) == 0
    assert (fitted.per_query["dress"][rows] == fitted.folds[0]).all() and len(np.unique(fitted.folds, axis=0)) > 1
    others = []
    for member in members:
        part = member.categories["dress"]
        scores = np.array(part.scores)
        scores[rows] = np.random.default_rng(9).permutation(scores[rows].ravel()).reshape(scores[rows].shape)
        others.append(replace(member, categories={"dress": replace(part, scores=scores)}))
    again = fit_weights(Fusion(others), tmp_path / "b", **options)
    assert (again.folds[0] == fitted.folds[0]).all() and (again.per_query["dress"][rows] == fitted.folds[0]).all()
    assert (again.folds[1:] != fitted.folds[1:]).any()


@pytest.mark.parametrize("fused", [True, False])
def test_rankings_and_submission(made: tuple[Path, EnsembleConfig, dict[str, Any]], tmp_path: Path, fused: bool) -> None:
    root, config, result = made
    out = root / "out"
    if not fused:
        build_ensemble(replace(config, out=str(tmp_path / "out"), fused=False, weights=tuple(result["run"]["weights"])))
        assert not (tmp_path / "out" / "fused").exists() and not (tmp_path / "out" / "search").exists()
        assert everything(tmp_path / "out" / "submission") == everything(out / "submission")
        return
    fusion = Fusion([open_scores(folder) for folder in config.test])
    weights = np.array(result["run"]["weights"])
    assert sorted(path.name for path in (out / "submission").iterdir()) == sorted(f"{name}.test.pred.json" for name in TEST)
    for category, (count, size) in TEST.items():
        part = fusion.members[0].categories[category]
        scores = fusion.fused(category, slice(0, count), weights)
        objects = content(out / "submission" / f"{category}.test.pred.json")
        assert len(objects) == count
        for row, (query, entry) in enumerate(zip(part.queries, objects, strict=True)):
            assert list(entry) == ["candidate", "captions", "ranking"]
            assert (entry["candidate"], tuple(entry["captions"])) == (query.reference, query.captions)
            order = [part.gallery[place] for place in sorted(range(size), key=lambda place: (-scores[row, place], place))]
            order.remove(query.reference)
            assert entry["ranking"] == order[:50] and len(entry["ranking"]) == min(50, size - 1)
            ranking = content(out / "ranking.test.json")[category][query.id]
            assert [name for name, _ in ranking] == entry["ranking"]
    assert {category: len(queries) for category, queries in content(out / "ranking.val.json").items()} == {
        c: n for c, (n, _) in VAL.items()
    }
    # The fused scores are a member like any other.
    again = open_scores(out / "fused" / "val")
    assert again.scale is None and again.protocol == fusion.protocol.replace(split="val")
    alone = Fusion([again], "raw").evaluate(np.ones(1))[0]
    assert summarise(alone, again.protocol)["mean"] == result["on_its_own_queries"]
    more = build_ensemble(
        EnsembleConfig((str(out / "fused" / "val"), config.members[0]), str(tmp_path / "more"), trials=4, folds=2, progress=False)
    )
    assert [member["name"] for member in more["members"]] == ["ensemble", "m0"]


def test_a_finished_command_repeats_its_numbers(made: tuple[Path, EnsembleConfig, dict[str, Any]]) -> None:
    root, config, result = made
    before = everything(root / "out")
    assert build_ensemble(config) == result
    after = everything(root / "out")
    assert {name for name in before if before[name] != after.get(name)} <= {"search/search.lock"} and set(before) == set(after)


def test_results_of_two_ensembles_never_stand_side_by_side(made: tuple[Path, EnsembleConfig, dict[str, Any]], tmp_path: Path) -> None:
    root, config, result = made
    shutil.copytree(root / "out", tmp_path / "out")
    (tmp_path / "out" / "submission" / "notes.txt").write_text("mine")
    build_ensemble(replace(config, out=str(tmp_path / "out"), test=(), weights=(1.0, 0.0, 1.0), fused=False))
    left = set(everything(tmp_path / "out")) - {name for name in everything(tmp_path / "out") if name.startswith("search/")}
    assert left == {"ensemble.json", "metrics.json", "contributions.png", "ranking.val.json", "submission/notes.txt"}
    with pytest.raises(UsageError, match="another search .it differs in: seed"):
        build_ensemble(replace(config, out=str(tmp_path / "out"), seed=5))
    assert build_ensemble(replace(config, out=str(tmp_path / "out"), seed=5, overwrite=True))["run"]["seed"] == 5


def test_given_weights(made: tuple[Path, EnsembleConfig, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root, config, result = made
    command = ["ensemble", "--members", *config.members, "--out", str(tmp_path / "out"), "--weights", "1,0,3", "--normalise", "rank"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "given weights" in printed and str(tmp_path / "out" / "ensemble.json") in printed
    found = content(tmp_path / "out" / "ensemble.json")
    assert found["run"]["weights"] == [0.25, 0.0, 0.75] and found["cross_fitted"] is None
    assert content(tmp_path / "out" / "metrics.json")["mean"] == found["on_its_own_queries"]


def test_several_right_answers_and_captions_of_their_own(tmp_path: Path) -> None:
    labels = {f"g{place}": f"label {place % 4}" for place in range(20)}
    members = write_members(tmp_path / "m", {"all": (24, 20)}, count=2, protocol=ANY, levels=2, labels=labels)
    config = EnsembleConfig(names(members), str(tmp_path / "out"), trials=6, folds=2, progress=False)
    assert list(build_ensemble(config)["equal"]) == ["R@1", "R@3", "R@10", "mean"]
    with pytest.raises(UsageError, match="every caption is a query"):
        build_ensemble(replace(config, out=str(tmp_path / "other"), test=names(members)))
    assert not (tmp_path / "other").exists()


def spoil(member: ScoreFile, category: str, change: Any) -> None:
    path = member.folder / f"{category}.npy"
    scores = np.load(path)
    change(scores)
    np.save(path, scores)


def refusals(root: Path) -> dict[str, tuple[EnsembleConfig, str]]:
    val, test = write_members(root / "val", VAL), write_members(root / "test", TEST, split="test", targets=False)
    config = EnsembleConfig(names(val), str(root / "out"), names(test), trials=5, folds=2, progress=False)
    cases: dict[str, tuple[EnsembleConfig, str]] = {}

    def with_member(name: str, side: str, member: ScoreFile, message: str) -> None:
        folders = (*getattr(config, side)[:2], str(member.folder))
        cases[name] = (replace(config, **{side: folders}), message)

    for name, side, sizes, options in (("NaN", "members", VAL, {}), ("late NaN", "test", TEST, {"split": "test", "targets": False})):
        member = write_members(root / name, sizes, **options)[2]
        spoil(member, "shirt", lambda scores: scores.__setitem__((-1, -1), np.nan))
        with_member(name, side, member, "m2, shirt: expected finite scores, found nan")
    cut = write_members(root / "cut", VAL)[2]
    (cut.folder / "tiny.npy").write_bytes((cut.folder / "tiny.npy").read_bytes()[:-1])
    with_member("cut", "members", cut, "tiny.npy: cut short")
    fewer = write_members(root / "fewer", {"dress": VAL["dress"], "tiny": VAL["tiny"]})
    with_member("category", "members", fewer[2], "fewer/m2: the categories shirt are missing")
    some = write_members(root / "some", {"shirt": TEST["shirt"]}, split="test", targets=False)
    cases["test categories"] = (replace(config, test=names(some)), "the categories dress, tiny are missing")
    turned = write_member(
        root / "turned", {name: (made_queries(name, *size)[::-1], np.zeros(size, np.float32)) for name, size in VAL.items()}
    )
    with_member("order", "members", turned, "turned, dress: the queries differ.*another order")
    with_member("protocol", "members", write_members(root / "other", VAL, protocol=REMOVED)[2], "different protocols")
    cases |= {
        "one": (replace(config, members=config.members[:1]), "needs at least two"),
        "none": (replace(config, members=(*config.members, str(root / "nowhere"))), "no such folder"),
        "no targets": (replace(config, members=config.test, test=()), "have no targets"),
        "test count": (replace(config, test=config.test[:2]), "one score file per member"),
        "test order": (replace(config, test=config.test[::-1]), "another model than"),
        "normalise": (replace(config, normalise="best"), "--normalise"),
        "trials": (replace(config, trials=0), "--trials"),
        "folds": (replace(config, folds=1), "--folds"),
        "many folds": (replace(config, folds=1000), "--folds: found 1000, but"),
        "seed": (replace(config, seed=-1), "--seed"),
        "out": (replace(config, out=str(root / "val" / "m0" / "dress.npy")), "expected a folder, found a file"),
    }
    for weights in ((1.0, 2.0), (1.0, -1.0, 1.0), (0.0, 0.0, 0.0), (1.0, float("nan"), 1.0), (1.0, float("inf"), 1.0), (1e308,) * 3):
        cases[f"weights {weights}"] = (replace(config, weights=weights), "--weights: expected 3 numbers")
    return cases


def test_bad_input_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    cases = refusals(tmp_path)
    before = everything(tmp_path)
    for name, (config, message) in cases.items():
        with pytest.raises(TfFashionError, match=message):
            build_ensemble(config)
            pytest.fail(name)
        assert not (tmp_path / "out").exists(), name
    assert everything(tmp_path) == before


def test_members_are_not_overwritten_by_their_ensemble(tmp_path: Path) -> None:
    members = write_members(tmp_path / "m", {"dress": (20, 30)}, count=2)
    config = EnsembleConfig(names(members), str(tmp_path / "out"), trials=4, folds=2, progress=False)
    build_ensemble(config)
    before = everything(tmp_path)
    with pytest.raises(UsageError, match="is a member and lies where the fused scores"):
        build_ensemble(replace(config, members=(*config.members, str(tmp_path / "out" / "fused" / "val")), overwrite=True))
    (tmp_path / "mine" / "fused" / "val").mkdir(parents=True)
    (tmp_path / "mine" / "fused" / "val" / "thesis.txt").touch()
    with pytest.raises(UsageError, match="other files in it"):
        build_ensemble(replace(config, out=str(tmp_path / "mine")))
    shutil.rmtree(tmp_path / "mine")
    assert everything(tmp_path) == before


def test_two_members_of_one_name_are_told_apart(tmp_path: Path) -> None:
    first = write_members(tmp_path / "seed1" / "scores", {"dress": (12, 20)}, count=1)
    second = write_members(tmp_path / "seed2" / "scores", {"dress": (12, 20)}, count=1)
    config = EnsembleConfig((*names(first), *names(second)), str(tmp_path / "out"), weights=(1, 1), progress=False)
    assert [member["name"] for member in build_ensemble(config)["members"]] == ["seed1/m0", "seed2/m0"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A dataset and a model, whose weights are those that it starts training with."""
    root = tmp_path_factory.mktemp("drawn")
    data = draw_wardrobe(root / "wardrobe", items=100, size=32, progress=False, workers=1)
    tokenizer = WordTokenizer(["is", "red", "and", "longer", "with", "stripes"])
    text = TEXT_ENCODERS.get("swem")(vocabulary_size=len(tokenizer.vocabulary), dim=16, embedding_dim=8)
    encoder = ImageEncoder("small_cnn", image_size=32, taps=("stage5",), pooling="avg")
    (root / "run").mkdir()
    ComposedRetriever(encoder, text, "tirg", tokenizer, dim=16, caption_style="clip4cir").save(root / "run" / "model.keras")
    return data, str(root / "run" / "model.keras")


@pytest.mark.slow
def test_scores_of_a_model(drawn: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data, model = drawn
    base = ["scores", "--model", model, "--data", str(data), "--categories", "dress,top", "--quiet"]
    assert main([*base, "--out", str(tmp_path / "a" / "val")]) == 0
    assert main([*base, "--split", "test", "--out", str(tmp_path / "a" / "test"), "--dtype", "float16", "--name", "half $x$"]) == 0
    full, test = (open_scores(tmp_path / name) for name in ("a/val", "a/test"))
    assert full.has_targets and not test.has_targets and (full.protocol.split, test.protocol.split) == ("val", "test")
    assert (full.name, test.name) == ("run", "half $x$") and full.run["model"] == test.run["model"]
    # Fused alone, the scores give what `evaluate` measures.
    metrics = tmp_path / "metrics.json"
    assert main(["evaluate", "composed", *base[1:], "--split", "val", "--out", str(metrics)]) == 0
    found = summarise(Fusion([full], "cosine").evaluate(np.ones(1))[0], full.protocol)
    assert found["categories"] == content(metrics)["categories"] and found["protocol"] == content(metrics)["protocol"]
    for name, part in full.categories.items():
        assert np.abs(part.scores).max() <= 1.0001
        assert (part.scores.dtype, test.categories[name].scores.dtype) == ("float32", "float16")
        assert [query.id for query in part.queries] == [f"val_{name}_{q.reference}_{row}" for row, q in enumerate(part.queries)]
        source = content(next(data.rglob(f"cap.{name}.test.json")))
        assert [(q.reference, list(q.captions)) for q in test.categories[name].queries] == [
            (o["candidate"], o["captions"]) for o in source
        ]
    out = str(tmp_path / "out")
    command = ["ensemble", "--members", str(full.folder), str(full.folder), "--out", out, "--trials", "4", "--folds", "2"]
    assert main([*command, "--test", str(test.folder), str(test.folder), "--quiet"]) == 0
    for name in test.categories:
        source = content(next(data.rglob(f"cap.{name}.test.json")))
        sent = content(tmp_path / "out" / "submission" / f"{name}.test.pred.json")
        assert [{key: value for key, value in entry.items() if key != "ranking"} for entry in sent] == source
    # Refusals leave older scores alone.
    before = everything(tmp_path / "a")
    capsys.readouterr()
    for options, code, message in (
        ([], 2, "there are scores already"),
        (["--dtype", "int8", "--overwrite"], 2, "--dtype"),
        (["--split", "moon", "--overwrite"], 2, "no split 'moon'"),
        (["--split", "test", "--protocol", "val-split", "--overwrite"], 2, "has no targets"),
        (["--protocol", "moon", "--overwrite"], 2, "moon"),
    ):
        assert main([*base, "--out", str(tmp_path / "a" / "val"), *options]) == code
        assert message in capsys.readouterr().err
    assert everything(tmp_path / "a") == before


def test_scores_go_on_without_bad_pictures_only_if_told(drawn: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data, model = drawn
    shutil.copytree(data, tmp_path / "data")
    category, split = "dress", next((tmp_path / "data").rglob("cap.dress.test.json"))
    lost = content(split)[0]["candidate"]
    next((tmp_path / "data" / "images").glob(f"{lost}.*")).write_bytes(b"<html>")
    base = ["scores", "--model", model, "--data", str(tmp_path / "data"), "--categories", "dress", "--split", "test", "--quiet"]
    assert main([*base, "--out", str(tmp_path / "s" / "test")]) == 1
    assert lost in capsys.readouterr().err and [path.name for path in (tmp_path / "s").iterdir()] == ["bad_images.csv"]
    assert main([*base, "--out", str(tmp_path / "s" / "test"), "--skip-bad-images"]) == 0
    part = open_scores(tmp_path / "s" / "test").categories[category]
    assert lost not in part.gallery and len(part.queries) < len(content(split))
    val = write_members(tmp_path / "val", dict.fromkeys(open_scores(tmp_path / "s" / "test").categories, (6, 9)), count=2)
    for member in val:
        manifest = content(member.folder / "scores.json")
        manifest["run"] = {}
        (member.folder / "scores.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    command = ["ensemble", "--members", *names(val), "--test", *[str(tmp_path / "s" / "test")] * 2]
    assert main([*command, "--out", str(tmp_path / "out"), "--weights", "1,1"]) == 0
    assert f"queries of {category}, whose pictures could not be used" in capsys.readouterr().out


def test_weights_that_are_no_numbers(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["ensemble", "--members", "a", "b", "--out", "c", "--weights", "x,y"])
    assert "--weights" in capsys.readouterr().err


def test_queries_without_targets_find_no_weights(tmp_path: Path) -> None:
    members = write_members(tmp_path, {"dress": (4, 9)}, targets=False, protocol=KEPT)
    with pytest.raises(DataError, match="these have none"):
        fit_weights(Fusion(members), tmp_path / "search", progress=False)
