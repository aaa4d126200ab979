"""Whole adaptations on a small drawn wardrobe: every weighting, its files, alignments, resume, bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.training.conftest import Street
from tf_fashion.cli import adapt_config, build_parser, main
from tf_fashion.clustering.meta_domains import STRATEGIES, PseudoLabels
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets import open_street_to_shop
from tf_fashion.datasets.domain_features import write_domain_features
from tf_fashion.datasets.street_to_shop import PhotoDomain
from tf_fashion.models.adapter import DomainAdapter, load_adapter
from tf_fashion.training.adaptation import MATCH_FILES, AdaptRun
from tf_fashion.training.street_data import StreetPhotos, make_alignment


def config(street: Street, out: Path, *options: str, data: Path | None = None, model: Path | None = None):
    given = ["adapt", "--model", str(model or street.model), "--data", str(data or street.data), "--out", str(out)]
    return adapt_config(build_parser().parse_args([*given, *street.quick, *street.adapted, *options]))


def attached(street: Street, out: Path, *options: str, data: Path | None = None) -> AdaptRun:
    run = AdaptRun(config(street, out, *options, data=data))
    run.load_pictures()
    run.attach()
    return run


def same(one: PseudoLabels, other: PseudoLabels) -> bool:
    parts = [(entry.splits, entry.rows) for labels in (one, other) for entry in (labels.consumers, labels.shops, labels.weak)]
    half = len(parts) // 2
    lists = all(
        np.array_equal(a, b) for ours, theirs in zip(parts[:half], parts[half:], strict=True) for a, b in zip(ours, theirs, strict=True)
    )
    names = ("categories", "products", "weights")
    return lists and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


@pytest.fixture
def alignment(tmp_path: Path) -> Path:
    """Two groups of the wardrobe's categories, and one of the target's alone."""
    path = tmp_path / "alignment.json"
    groups = [{"name": "a", "target": [0], "source": [0, 1]}, {"name": "b", "target": [2], "source": [2]}]
    path.write_text(json.dumps({"groups": [*groups, {"name": "rest", "target": [9]}]}))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("weighting", STRATEGIES)
def test_every_weighting_runs_and_writes_what_it_did(street: Street, tmp_path: Path, weighting: str) -> None:
    out = tmp_path / "run"
    assert street.adapt(out, "--weighting", weighting) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    labels = PseudoLabels.load(out / "pseudo_labels.npz")
    assert labels.strategy == weighting and labels.attached.any()
    assert metrics["run"]["pseudo_labels"] == labels.summary() and metrics["run"]["left_out"] == 0
    assert metrics["run"]["name"].startswith(f"adapted by {weighting} (")
    # Before adaptation it is the model that was given.
    source = json.loads((street.model.parent / "metrics.json").read_text())
    for name in ("df", "s2s"):
        for key, value in source["tests"][name]["mean"].items():
            assert metrics["compared"]["before adaptation"][name]["mean"][key] == pytest.approx(value, abs=1e-6)
    assert (out / "clusters.npz").exists() and ("groups" in json.loads((out / "clusters.json").read_text()))
    if weighting in MATCH_FILES:
        matches = (out / MATCH_FILES[weighting].format(1)).read_text().splitlines()
        assert matches and {len(line.split(",")) for line in matches} == {3 if weighting in ("ws7", "ws8") else 4}
    ours, theirs = load_adapter(out / "model.keras"), load_adapter(street.model)
    changed = [not np.array_equal(a.numpy(), b.numpy()) for a, b in zip(ours.fc.weights, theirs.fc.weights, strict=True)]
    assert any(changed)
    for one, other in zip(ours.image_encoder.weights, theirs.image_encoder.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


@pytest.mark.slow
def test_the_control_needs_nothing_of_the_target(street: Street, tmp_path: Path) -> None:
    data = street.copy(tmp_path / "data")
    for path in [*data.glob("train_cluster/s2s_*"), *data.glob("test/*street2shop.json")]:
        path.unlink()
    out = tmp_path / "run"
    assert street.adapt(out, "--weighting", "none", data=data) == 0
    labels = PseudoLabels.load(out / "pseudo_labels.npz")
    assert labels.strategy == "none" and not labels.attached.any() and len(labels) == 10
    assert not (out / "clusters.npz").exists()
    assert list(json.loads((out / "metrics.json").read_text())["tests"]) == ["df"]
    run = AdaptRun(config(street, tmp_path / "b", "--weighting", "none", "--test", "df"))
    assert not any("s2s" in image_id for image_id in run.dataset.image_ids(["train", "test"]))


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["ws5", "ws7"])
def test_matches_of_a_file_give_the_same_pseudo_labels(street: Street, tmp_path: Path, weighting: str) -> None:
    first = attached(street, tmp_path / "a", "--weighting", weighting)
    written = tmp_path / "a" / MATCH_FILES[weighting].format(1)
    again = attached(street, tmp_path / "b", "--weighting", weighting, "--matches", str(written))
    assert same(first.labels, again.labels) and first.labels.attached.any()
    assert same(first.labels, PseudoLabels.load(tmp_path / "b/pseudo_labels.npz"))
    assert (tmp_path / "b" / written.name).read_text() == written.read_text()
    # Another content under the same name is another run.
    shutil.copy(written, copied := tmp_path / "matches.csv")
    AdaptRun(config(street, tmp_path / "c", "--weighting", weighting, "--matches", str(copied)))._claim_out()
    copied.write_text("\n".join(copied.read_text().splitlines()[1:]) + "\n")
    with pytest.raises(UsageError, match="the content of a given model"):
        AdaptRun(config(street, tmp_path / "c", "--weighting", weighting, "--matches", str(copied)))
    with pytest.raises(UsageError, match="name no photos") if weighting == "ws7" else pytest.raises(DataError, match="other lists"):
        copied.write_text(written.read_text() if weighting == "ws7" else "0,26,0,0.5\n")
        attached(street, tmp_path / "d", "--weighting", "ws5", "--matches", str(copied))


@pytest.mark.slow
def test_matches_count_the_lines_of_the_whole_lists(street: Street, tmp_path: Path) -> None:
    written = attached(street, tmp_path / "a").out / MATCH_FILES["ws5"].format(1)
    data = street.copy_photos(tmp_path / "data")
    photos = open_street_to_shop(data)
    shop = (data / "train_cluster/df_shop.txt").read_text().splitlines()
    target = (data / "train_cluster/s2s_shop.txt").read_text().splitlines()
    for line in (shop[0], target[0], target[5]):
        (data / line.split()[0]).unlink()
    run = attached(street, tmp_path / "b", "--matches", str(written), "--skip-bad-images", data=data)
    kept = [line for line in written.read_text().splitlines() if int(line.split(",")[0]) - len(shop) not in (0, 5)]
    again = (tmp_path / "b" / written.name).read_text().splitlines()
    assert again == kept and len(photos.annotation_files()) > 0
    weak = run.labels.weak.rows
    left = [line.split()[0] for number, line in enumerate(target) if number not in (0, 5)]
    lines = {int(line.split(",")[0]) - len(shop) for line in kept}
    assert {left[row] for row in weak} <= {target[number].split()[0] for number in lines}
    assert len(run.rows[run.domains[2]]) == len(left)


def test_categories_are_aligned_as_asked(street: Street, tmp_path: Path, alignment: Path) -> None:
    photos = StreetPhotos(open_street_to_shop(street.data))
    assert len(make_alignment("single", photos).groups) == 1
    by_name = make_alignment("by_name", photos)
    assert len(by_name.groups) == 3 and all(group.source == group.target for group in by_name.groups)
    read = make_alignment(str(alignment), photos)
    assert [group.name for group in read.groups] == ["a", "b"] and [group.name for group in read.target_only] == ["rest"]
    run = attached(street, tmp_path / "run", "--alignment", str(alignment), "--partition", "0")
    assert set(json.loads((tmp_path / "run/clusters.json").read_text())["groups"]) == {"a", "b"}
    # Photos of a target category outside of the groups go to nobody.
    rows = run.dataset.domain("train", run.domains[2])
    assert set(rows.categories[run.labels.weak.rows].tolist()) <= {0, 2}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "JSON"),
        ("[]", "expected"),
        ('{"groups": 3}', "expected"),
        ('{"groups": []}', "none of its source categories"),
        ('{"groups": [{"name": "a"}]}', "expected"),
        ('{"groups": [{"name": "a", "target": "01", "source": [0]}]}', "expected a list of whole numbers, found '01'"),
        ('{"groups": [{"name": "a", "target": [0.5], "source": [0]}]}', "expected a list of whole numbers"),
        ('{"groups": [{"name": "a", "target": [Infinity], "source": [0]}]}', "expected"),
        ('{"groups": [{"name": "a", "target": [77], "source": [0]}]}', "none of its target categories"),
        ('{"groups": [{"name": "a", "target": [0], "source": [77]}]}', "none of its source categories"),
        ('{"groups": [{"name": "a", "target": [0], "source": [0]}, {"name": "b", "target": [0], "source": [1]}]}', "in two groups"),
    ],
)
def test_alignments_that_cannot_be(street: Street, alignment: Path, content: str, words: str) -> None:
    alignment.write_text(content)
    with pytest.raises((DataError, UsageError), match=words) as caught:
        make_alignment(str(alignment), StreetPhotos(open_street_to_shop(street.data)))
    assert "alignment" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--weighting", "ws4"], "--weighting: expected none or ws5"),
        (["--weighting", "soft", "--weighting-option", "heat=1"], "--weighting-option heat"),
        (["--weighting", "soft", "--weighting-option", "temperature=hot"], "temperature: expected a number, found 'hot'"),
        (["--weighting", "soft", "--weighting-option", "least_weight=1"], "least_weight from 0 to below 1"),
        (["--weighting-option", "temperature=1"], "belongs to --weighting soft"),
        (["--alignment", "names"], "--alignment: expected single, by_name, deepfashion or a .json file; found 'names'"),
        (["--alignment", "nowhere.json"], "nowhere.json"),
        (["--partition", "-1"], "--partition: expected a number from 0"),
        (["--neighbours", "some"], "--neighbours: expected"),
        (["--categories-per-batch", "2"], "--no-merge"),
        (["--preset", "udma", "--alignment", "single"], "--categories-per-batch: a batch takes 12 categories, found"),
        (["--no-merge", "--categories-per-batch", "40"], "a batch takes 40 categories, found"),
        (["--loss", "batch_classification"], "batches of whole products take mined_triplet or supervised_contrastive"),
        (["--matches", "nowhere.csv"], "nowhere.csv"),
        (["--weighting", "none", "--matches", "m.csv"], "'none' has no matches"),
        (["--test", "df", "--protocol", "street2shop"], "ranks within categories"),
        (["--batch-size", "1"], "--batch-size: expected at least 2"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_written(
    street: Street, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert street.adapt(tmp_path / "run", *options) in (1, 2)
    message = capsys.readouterr().err
    assert words in message and "Traceback" not in message
    assert not list(tmp_path.glob("run/*"))


def test_a_partition_that_is_not_there_is_named(street: Street, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert street.adapt(tmp_path / "run", "--partition", "30") == 2
    assert "There is no partition 30 of all" in capsys.readouterr().err
    assert not (tmp_path / "run/model.keras").exists()


def test_models_that_cannot_be_adapted(street: Street, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tf_fashion.models.adapter import DomainAdapter

    for name, model in {
        "no linear layer": DomainAdapter(load_adapter(street.model).image_encoder, linear=False),
        "no image encoder": DomainAdapter(feature_dim=4),
    }.items():
        path = tmp_path / f"{name}.keras"
        model.save(path)
        assert street.adapt(tmp_path / "run", model=path) == 2
        assert f"--model {path}: it has {name}" in capsys.readouterr().err
    (tmp_path / "text.keras").write_text("no model")
    assert street.adapt(tmp_path / "run", model=tmp_path / "text.keras") in (1, 2)
    assert street.adapt(tmp_path / "run", model=tmp_path / "nowhere.keras") == 2
    message = capsys.readouterr().err
    assert "text.keras" in message and "nothing there" in message and "Traceback" not in message


def test_another_model_under_the_same_name_is_another_run(street: Street, tmp_path: Path) -> None:
    copied = Path(shutil.copy(street.model, tmp_path / "model.keras"))
    AdaptRun(config(street, tmp_path / "run", model=copied))._claim_out()
    AdaptRun(config(street, tmp_path / "run", model=copied))
    model = load_adapter(copied)
    model.fc.kernel.assign(-model.fc.kernel)
    model.save(copied)
    with pytest.raises(UsageError, match="the content of a given model"):
        AdaptRun(config(street, tmp_path / "run", model=copied))


@pytest.mark.slow
def test_batches_of_categories(street: Street, tmp_path: Path) -> None:
    options = ["--no-merge", "--categories-per-batch", "3", "--loss", "mined_triplet", "--alignment", "by_name", "--partition", "0"]
    assert street.adapt(tmp_path / "run", *options) == 0
    run = attached(street, tmp_path / "look", *options)
    run.build_model()
    inputs, labels, weights = next(iter(run.training_data(0)))
    assert inputs["features"].shape[0] == labels.shape[0] == weights.shape[0] == 3


def test_the_published_setting() -> None:
    parsed = adapt_config(
        build_parser().parse_args(["adapt", "--model", "m", "--data", "d", "--out", "o", "--preset", "udma"])
    ).resolved()
    assert (parsed.weighting, parsed.alignment, parsed.partition, parsed.categories_per_batch) == ("ws5", "deepfashion", 0, 12)
    assert (parsed.epochs * parsed.steps_per_epoch, parsed.batch_size, parsed.learning_rate) == (45_000, 128, 1e-4)
    assert (parsed.optimizer, parsed.weight_decay, parsed.schedule, parsed.loss) == ("adamw", 0.0, "thirds", "mined_triplet")
    assert parsed.loss_options == {"margin": 0.3} and not parsed.merge


@pytest.mark.slow
def test_an_interrupted_adaptation_ends_like_an_uninterrupted_one(street: Street, tmp_path: Path) -> None:
    options = ["--epochs", "2", "--weighting", "soft"]

    def built(out: Path) -> AdaptRun:
        run = attached(street, out, *options)
        run.build_model()
        return run

    whole = built(tmp_path / "whole")
    whole.fit()
    # Killed once between the attachment and the training, and once after the first epoch.
    attached(street, tmp_path / "part", *options)
    for _ in range(2):
        part = built(tmp_path / "part")
        state = part.prepare_state()
        part._fit(state.initial_epoch, state.initial_epoch + 1, part.callbacks())
    for ours, theirs in zip(whole.model.weights, part.model.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.path)
    # What it was before is measured before the state comes back.
    assert part._before["df"].summary() == whole._before["df"].summary()


@pytest.mark.slow
def test_a_report_shows_clusters_and_weights_and_nothing_of_a_replaced_run(street: Street, tmp_path: Path) -> None:
    given = ["adapt", "--model", str(street.model), "--data", str(street.data), "--out", str(tmp_path / "run"), "--quiet"]
    assert main([*given, *street.adapted]) == 0
    for name in ("clusters.png", "cluster_tree.png", "weights.svg", "report.html", "sheet.png", "export/1/saved_model.pb"):
        assert (tmp_path / "run" / name).stat().st_size, name
    page = (tmp_path / "run/report.html").read_text()
    assert "What was clustered and attached" in page and "before adaptation" in page
    assert main([*given, *street.adapted, "--weighting", "none", "--overwrite", "--no-export"]) == 0
    assert "What was clustered and attached" not in (tmp_path / "run/report.html").read_text()
    assert not (tmp_path / "run/clusters.npz").exists()


@pytest.mark.slow
@pytest.mark.parametrize("weighting", STRATEGIES)
def test_spoiled_photos_are_left_out(street: Street, tmp_path: Path, capsys, weighting: str) -> None:
    data = street.copy_photos(tmp_path / "data")
    photos = open_street_to_shop(data)
    # All shop photos of one product of either shop, a consumer photo, and those of a target category.
    for name in ("df-train-00000-shop-*", "s2s-train-00001-shop-*", "df-train-00003-consumer-0*", "s2s-train-00002-*"):
        for path in (data / "images").glob(name):
            path.unlink()
    assert street.adapt(tmp_path / "run", "--weighting", weighting, data=data) == 1
    assert "--skip-bad-images" in capsys.readouterr().err
    assert street.adapt(tmp_path / "run", "--weighting", weighting, "--skip-bad-images", data=data) == 0
    labels = PseudoLabels.load(tmp_path / "run/pseudo_labels.npz")
    assert 0 not in labels.products and labels.left_out == 1
    run = attached(street, tmp_path / "look", "--weighting", weighting, "--skip-bad-images", data=data)
    shown = [photo.product for photo in run.dataset.photos("train", run.domains[1])]
    for number, product in enumerate(labels.products):
        assert {shown[row] for row in labels.shops[number]} == {str(product)}
    assert photos.splits() == ["train", "test"]


@pytest.mark.parametrize("side", ["df_shop", "df_consumer", "s2s_shop"])
def test_nothing_is_left_of_a_domain(street: Street, tmp_path: Path, capsys: pytest.CaptureFixture[str], side: str) -> None:
    data = street.copy_photos(tmp_path / "data")
    source, which = side.split("_")
    for path in (data / "images").glob(f"{source}-train-*-{which}-*"):
        path.unlink()
    assert street.adapt(tmp_path / "run", "--skip-bad-images", data=data) in (1, 2)
    message = capsys.readouterr().err
    assert side in message and "Traceback" not in message


def write_features(street: Street, folder: Path, width: int, skip: str = "") -> Path:
    """The published programs' feature files of all lists of the wardrobe."""
    data, random = open_street_to_shop(street.data), np.random.default_rng(0)
    for source, name in (("df", "DeepFashion"), ("s2s", "Street2Shop")):
        for side, role in (("consumer", "Query"), ("shop", "Gallery")):
            domain = PhotoDomain(source, side)
            for split, file in (("train", f"ClusteringFeats/BASE/{name}/ALL/train_{side.capitalize()}_X-1_60.h5"), ("test", "")):
                path = folder / (file or f"{name}/ALL/{role}_X-1_60_Crop.h5")
                path.parent.mkdir(parents=True, exist_ok=True)
                photos = data.photos(split, domain)
                numbers = data.numbers(split, domain) if split == "train" else (None, None)
                if path.name != skip:
                    write_domain_features(path, random.normal(size=(len(photos), width)).astype("f4"), *numbers, test=split == "test")
    return folder


def test_published_feature_files_take_the_place_of_photos(street: Street, tmp_path: Path) -> None:
    folder = write_features(street, tmp_path / "features", 12)
    model = tmp_path / "linear.keras"
    DomainAdapter(feature_dim=12, dim=8).save(model)
    assert street.adapt(tmp_path / "run", "--features", str(folder), "--seed", "5", model=model) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert set(metrics["tests"]) == {"df", "s2s"} and metrics["run"]["seed"] == 5
    ours, theirs = load_adapter(tmp_path / "run/model.keras"), load_adapter(model)
    assert not np.array_equal(ours.fc.weights[0].numpy(), theirs.fc.weights[0].numpy())


def test_feature_files_that_do_not_fit_are_refused(street: Street, tmp_path: Path) -> None:
    model = tmp_path / "linear.keras"
    DomainAdapter(feature_dim=12, dim=8).save(model)
    with pytest.raises(UsageError, match="no image encoder"):
        AdaptRun(config(street, tmp_path / "a", model=model))
    incomplete = write_features(street, tmp_path / "incomplete", 12, skip="train_Shop_X-1_60.h5")
    with pytest.raises(DataError, match=r"train_Shop_X-1_\* .*df_shop, found none"):
        AdaptRun(config(street, tmp_path / "b", "--features", str(incomplete), model=model))
    with pytest.raises(UsageError, match="vectors of 12 numbers"):
        AdaptRun(
            config(street, tmp_path / "c", "--features", str(write_features(street, tmp_path / "wide", 9)), model=model)
        ).load_pictures()
