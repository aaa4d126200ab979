"""Whole street-to-shop runs on a small drawn wardrobe: results, resume, two replicas, samplers, schedules, bad input."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.training.conftest import Street
from tf_fashion.cli import build_parser, main, street_config
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets import PhotoDomain, open_street_to_shop
from tf_fashion.models.adapter import load_adapter
from tf_fashion.retrieval.multi_positive import evaluate
from tf_fashion.training.runs import tenth_of_thirds
from tf_fashion.training.street import StreetRun
from tf_fashion.training.street_data import StreetPhotos
from tf_fashion.training.street_evaluation import StreetTest, open_tests

TRAINED = ["--backbone", "small_cnn", "--image-size", "32", "--dim", "16"]


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


def write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.slow
def test_a_run_leaves_all_its_files(street: Street, tmp_path: Path) -> None:
    arguments = ["train", "street_to_shop", "--data", str(street.data), "--out", str(tmp_path / "run"), "--quiet"]
    assert main([*arguments, *street.cache, *street.small]) == 0
    for name in ("model.keras", "metrics.json", "history.csv", "sheet.png", "report.html", "config.json", "export/1/saved_model.pb"):
        assert (tmp_path / "run" / name).stat().st_size, name
    page = (tmp_path / "run/report.html").read_text()
    assert "df: consumer photos in the shop" in page and "s2s: comparison" in page and "data:image/jpeg" in page


def test_metrics_hold_both_test_lists_and_what_they_are_compared_with(street: Street) -> None:
    metrics = json.loads((street.model.parent / "metrics.json").read_text())
    assert metrics["test"] == "df" and list(metrics["tests"]) == ["df", "s2s"]
    assert metrics["mean"] == metrics["tests"]["df"]["mean"] and set(metrics["mean"]) == {"mAP", "R@1", "R@5", "R@10", "R@20", "R@50"}
    assert [metrics["tests"][name]["protocol"]["name"] for name in ("df", "s2s")] == ["deepfashion-c2s", "street2shop"]
    assert list(metrics["compared"]) == ["features alone (stage5)", "features, each domain centred (stage5)"]
    assert all(list(entry) == ["df", "s2s"] for entry in metrics["compared"].values())
    run = metrics["run"]
    assert run["left_out"] == 0 and run["epochs"] == 2 and run["config"]["sampler"] == "products" and run["weights"]["sha256"]
    with open(street.model.parent / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"] and {"test_mAP", "test_R@1", "test_s2s_mAP"} <= set(rows[0])
    assert float(rows[-1]["test_mAP"]) == pytest.approx(metrics["mean"]["mAP"], abs=1e-4)


def test_frozen_features_are_standardised_and_start_as_components(street: Street, tmp_path: Path) -> None:
    run = StreetRun(street.config(tmp_path / "run", *street.cache, "--dim", "16", "--feature-dropout", "0"))
    run.load_pictures()
    model = run.build_model()
    assert run.config.sampler == "products" and run.steps == 2
    assert not model.image_encoder.trainable and model.standardize and run.table is not None
    rows = run._train_vectors()
    widths = list(run.encoder.block_widths.values())
    units = np.asarray(model.standardizer(rows))
    np.testing.assert_allclose(units.mean(axis=0), 0, atol=1e-3)
    # Deep taps weigh whole, others half; descriptors of the shape are there beside the taps.
    assert list(run.encoder.block_widths)[:2] == ["stage3", "stage5"] and len(widths) == 3
    parts = np.split(np.square(units), np.cumsum(widths)[:-1], axis=1)
    spreads = [float(part.sum(axis=1).mean()) for part in parts]
    assert spreads[1] > 1.5 * spreads[0]
    projected = np.asarray(model.project(rows))
    covariance = np.cov(projected.T)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-2 * np.diag(covariance).max()
    inputs, labels, weights = next(iter(run.training_data(0)))
    # All products of the wardrobe, each three times, of pairs of one product.
    features = inputs["features"].numpy()
    assert features.shape[0] == 1 and features.shape[2] == sum(widths)
    assert labels.shape == weights.shape == features.shape[:2] and set(weights.numpy().ravel()) <= {0.0, 1.0}
    half = labels.shape[1] // 2
    np.testing.assert_array_equal(labels.numpy()[0, :half], labels.numpy()[0, half:])
    table = {
        vector.tobytes(): image_id for image_id, vector in zip(run.table.ids, np.asarray(run.table.values, np.float32), strict=True)
    }
    for vector, label in zip(features[0], labels.numpy()[0], strict=True):
        assert table[vector.tobytes()] in {image_id for side in run.products[label] for image_id in side}


@pytest.mark.slow
def test_an_interrupted_run_ends_like_an_uninterrupted_one(street: Street, tmp_path: Path) -> None:
    # What is drawn from cached vectors continues in the tests of adaptation.
    options = [*TRAINED, "--epochs", "2", "--split", "none"]
    whole = StreetRun(street.config(tmp_path / "whole", *options))
    whole.load_pictures()
    whole.build_model()
    whole.fit()
    for _ in range(2):
        part = StreetRun(street.config(tmp_path / "part", *options))
        part.load_pictures()
        part.build_model()
        state = part.prepare_state()
        part._fit(state.initial_epoch, state.initial_epoch + 1, part.callbacks())
    for ours, theirs in zip(whole.model.weights, part.model.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.path)


@pytest.mark.slow
def test_two_replicas_train_like_one_process(street: Street, tmp_path: Path) -> None:
    code = "import sys; from tf_fashion.cli import main; sys.exit(main(sys.argv[1:]))"
    options = ["--batch-norm", "frozen", "--loss", "mined_triplet", "--optimizer", "adam", "--learning-rate", "1e-3", "--test", "df"]
    common = ["train", "street_to_shop", "--data", str(street.data), *street.quick, *street.small, *TRAINED, *options]
    two = ["--strategy", "mirrored", "--devices", "cpu:0,cpu:1", "--out", str(tmp_path / "two")]
    for extra in (["--out", str(tmp_path / "one")], two):
        subprocess.run([sys.executable, "-c", code, *common, *extra], check=True, capture_output=True)
    one, both = (load_adapter(tmp_path / name / "model.keras") for name in ("one", "two"))
    for ours, theirs in zip(one.trainable_weights, both.trainable_weights, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=3e-4, err_msg=ours.path)
    assert json.loads((tmp_path / "two/metrics.json").read_text())["run"]["replicas"] == 2


def test_the_published_settings() -> None:
    parse = build_parser().parse_args
    resolved = [
        street_config(parse(["train", "street_to_shop", "--data", "d", "--out", "o", "--preset", name])).resolved()
        for name in ("df_bl", "df_bl_original")
    ]
    for config in resolved:
        assert (config.backbone, config.pooling, config.batch_size, config.epochs) == ("torch_resnet101", "gem", 128, 60)
        assert (config.learning_rate, config.schedule, config.augment, config.combination) == (1e-4, "thirds", "udma", "all")
        # Without decay, and with its epsilon beside the corrected root, this is PyTorch's Adam.
        assert (config.optimizer, config.weight_decay, config.optimizer_options) == ("adamw", 0.0, {"epsilon": 1e-8})
        assert config.loss_options["margin"] == 0.3 and config.dim is None and config.sampler == "pairs"
        assert not config.freeze_backbone and config.batch_norm == "train" and config.statuses == ("train", "val")
    assert resolved[1].loss_options["original_fallback"] and not resolved[0].loss_options.get("original_fallback")


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 8, 20])
@pytest.mark.parametrize("steps", [1, 7])
def test_the_rate_falls_after_each_third_of_the_epochs(epochs: int, steps: int) -> None:
    rate = tenth_of_thirds(0.5, epochs * steps, steps)
    third = max(epochs // 3, 1)
    for step in range(epochs * steps):
        if step % steps in (0, steps - 1):
            now = rate if isinstance(rate, float) else float(rate(step))
            assert now == pytest.approx(0.5 * 0.1 ** (step // steps // third), rel=1e-5), (epochs, steps, step)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--loss", "match_embedding"], "--loss match_embedding compares with given embeddings"),
        (["--loss", "no_such"], "no_such"),
        (["--test", "modanet"], "--test: expected df, s2s or df,s2s; found modanet"),
        (["--test", "df", "--protocol", "street2shop"], "ranks within categories, which the test lists of df do not have"),
        (["--protocol", "karaoke"], "Unknown protocol 'karaoke'"),
        (["--ap", "exact"], "ap must be one of"),
        (["--split", "val"], "--split: expected test or none"),
        (["--statuses", "trian"], "--statuses: expected some of train,val,test; found trian"),
        (["--batch-size", "500"], "a batch takes 500 products, found 10"),
        (["--batch-size", "1"], "--batch-size: expected at least 2"),
        (["--sampler", "products"], "add --freeze-backbone"),
        (["--start", "components"], "--start components looks at the features of all photos"),
        (["--freeze-backbone"], "random features"),
        (["--preset", "imat"], "Unknown preset"),
        (["--draws", "-1"], "--draws: expected"),
        (["--pooling", "none"], "--pooling none"),
        (["--init-from", "nowhere.keras"], "nowhere.keras"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_written(
    street: Street, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert street.train(tmp_path / "run", *TRAINED, *options) in (1, 2)
    message = capsys.readouterr().err
    assert words in message and "Traceback" not in message
    assert not list(tmp_path.glob("run/*"))


def test_a_source_without_test_lists_is_named(street: Street, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = street.copy(tmp_path / "data")
    for path in data.glob("test/test_*.json"):
        path.unlink()
    assert street.train(tmp_path / "run", *TRAINED, "--test", "s2s", data=data) == 2
    assert "has no consumer and shop lists of it. Found: df" in capsys.readouterr().err
    assert [test.source for test in StreetRun(street.config(tmp_path / "b", *TRAINED, data=data)).tests] == ["df"]


@pytest.mark.parametrize("gone", ["train_cluster/df_shop.txt", "train_cluster", "everything"])
def test_lists_that_are_not_there_are_named(street: Street, tmp_path: Path, capsys: pytest.CaptureFixture[str], gone: str) -> None:
    data = street.copy(tmp_path / "data")
    for path in sorted(data.glob(f"{gone}*" if gone != "everything" else "t*/*")):
        for file in [path] if path.is_file() else list(path.iterdir()):
            file.unlink()
    assert street.train(tmp_path / "run", *TRAINED, data=data) == 1
    message = capsys.readouterr().err
    expected = {"train_cluster": "no split 'train'", "everything": "expected train_cluster/df_shop.txt"}
    assert expected.get(gone, f"{gone}: no such file") in message and str(data) in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: [line.replace(" 0 0 ", " 0 x ") for line in lines], "line 1: expected whole numbers from 0"),
        (lambda lines: [line for line in lines if " 99 " in line], "the list is empty"),
        (lambda lines: [f"{line.split()[0]} {n + 900} 0 dress" for n, line in enumerate(lines)], "has both consumer and shop photos"),
        (lambda lines: [line for line in lines if line.split()[1] == "0"], "takes at least two"),
        (lambda lines: ["../../etc/passwd 0 0 dress", *lines], "line 1"),
    ],
)
def test_lists_that_do_not_fit(street: Street, tmp_path: Path, capsys: pytest.CaptureFixture[str], change, words: str) -> None:
    data = street.copy(tmp_path / "data")
    path = data / "train_cluster/df_shop.txt"
    write_lines(path, change(lines_of(path)))
    assert street.train(tmp_path / "run", *TRAINED, data=data) == 1
    message = capsys.readouterr().err
    assert words in message and "Traceback" not in message


def test_test_lists_without_a_common_product_are_refused_at_once(street: Street, tmp_path: Path, capsys) -> None:
    data = street.copy(tmp_path / "data")
    path = data / "test/shop_df.txt"
    write_lines(path, [line.replace("id_", "no_") for line in lines_of(path)])
    assert street.train(tmp_path / "run", *TRAINED, data=data) == 1
    assert "has a shop photo of its product" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_two_photos_of_one_id_are_refused(street: Street, tmp_path: Path, capsys) -> None:
    data = street.copy(tmp_path / "data")
    path = data / "train_cluster/df_shop.txt"
    lines = lines_of(path)
    write_lines(path, [*lines, lines[0].replace(".jpg", ".png")])
    assert street.train(tmp_path / "run", *TRAINED, data=data) == 1
    assert "would both get the id" in capsys.readouterr().err


@pytest.mark.slow
def test_spoiled_photos_are_named_and_left_out_everywhere(street: Street, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = street.copy_photos(tmp_path / "data")
    products = StreetRun(street.config(tmp_path / "look", *street.cache, data=data)).products
    gone, damaged = products[0][0][0], products[1][1][0]
    queries = StreetRun(street.config(tmp_path / "look", *street.cache, data=data)).tests[0].queries
    for image_id in (gone, damaged, queries[0].image_id):
        path = data / "images" / f"{image_id.removeprefix('images__')}.jpg"
        path.unlink() if image_id == gone else path.write_bytes(b"not a picture")
    assert street.train(tmp_path / "run", *street.cache, data=data) == 1
    assert gone.removeprefix("images__") in (message := capsys.readouterr().err) and "--skip-bad-images" in message
    assert street.train(tmp_path / "run", *street.cache, "--skip-bad-images", data=data) == 0
    listed = (tmp_path / "run/bad_images.csv").read_text()
    assert all(name in listed for name in (gone, damaged, queries[0].image_id))
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["run"]["left_out"] == 3
    assert metrics["tests"]["df"]["counts"]["queries"] == len(queries) - 1


@pytest.mark.parametrize(
    ("pattern", "words"), [("df-test-*-shop-*", "no shop photo is left"), ("df-train-*-shop-*", "no product is left")]
)
def test_nothing_is_left_without_the_spoiled_photos(street: Street, tmp_path: Path, capsys, pattern: str, words: str) -> None:
    data = street.copy_photos(tmp_path / "data")
    for path in (data / "images").glob(pattern):
        path.unlink()
    assert street.train(tmp_path / "run", *street.cache, "--skip-bad-images", data=data) == 1
    message = capsys.readouterr().err
    assert words in message and "Traceback" not in message


def test_rows_numbers_and_products_are_those_of_the_photos_that_count(street: Street) -> None:

    whole = StreetPhotos(open_street_to_shop(street.data))
    shop = PhotoDomain("df", "shop")
    listed = whole.photos("train", shop)
    # A product's only shop photos, and one of another.
    first = [photo.image_id for photo in listed if photo.product == listed[0].product]
    part = whole.without_images([*first, listed[5].image_id])
    left = part.photos("train", shop)
    domain = part.domain("train", shop)
    assert len(domain) == len(left) == len(listed) - len(first) - 1
    assert domain.products.tolist() == [int(photo.product) for photo in left]
    assert domain.categories.tolist() == [photo.category for photo in left]
    assert [listed[place] for place in part.kept("train", shop)] == left
    assert len(part.products("df", ("train",))) == len(whole.products("df", ("train",))) - 1
    ids = {image_id for sides in part.products("df", ("train",)) for side in sides for image_id in side}
    assert not ids & {*first, listed[5].image_id}
    assert part.report() == [f"train df_shop: {len(first) + 1} of {len(listed)} photos left out"]
    with pytest.raises(DataError, match="no product is left"):
        whole.without_images([photo.image_id for photo in listed]).products("df", ("train",))


@pytest.mark.slow
def test_a_photo_listed_twice_and_one_of_both_splits(street: Street, tmp_path: Path) -> None:
    data = street.copy(tmp_path / "data")
    train, test = data / "train_cluster/df_shop.txt", data / "test/shop_df.txt"
    queries = data / "test/consumer_df.txt"
    write_lines(train, [*lines_of(train), lines_of(train)[0]])
    write_lines(test, [*lines_of(test), lines_of(test)[0], f"{lines_of(train)[0].split()[0]},elsewhere"])
    write_lines(queries, [*lines_of(queries), lines_of(queries)[0]])
    for options in (street.cache, TRAINED):
        run = StreetRun(street.config(tmp_path / options[1], *options, data=data))
        run.load_pictures()
        run.build_model()
        gallery = run.tests[0].gallery
        found = run.embeddings(gallery)
        assert len(found) == len(gallery) == len(lines_of(test))
        np.testing.assert_allclose(found[-2], found[0], atol=1e-6)
        result = run.evaluate()["df"]
        own = [[photo.product for photo in photos] for photos in (run.tests[0].queries, gallery)]
        again = evaluate(run.embeddings(run.tests[0].queries), found, *own)
        np.testing.assert_allclose(result.average_precision, again.average_precision, atol=1e-6)
        assert result.average_precision[0] == pytest.approx(result.average_precision[-1])


def test_products_of_different_categories_are_different(street: Street) -> None:
    from tf_fashion.datasets.street_lists import ProductPhoto

    def photo(name: str, product: str, category: int, label: str = "") -> ProductPhoto:
        return ProductPhoto(name, f"{name}.jpg", product, category, label, None, 0)

    test = open_tests(StreetPhotos(open_street_to_shop(street.data)), ("s2s",), "cross-domain")[0]
    queries = [photo("q0", "7", 0, "tops"), photo("q1", "7", 1)]
    gallery = [photo("g0", "7", 1, "hats"), photo("g1", "7", 0)]
    vectors = np.eye(2, 4, dtype=np.float32)
    # Each query is nearest to the product of its number in the other category.
    result = StreetTest("s2s", test.protocol, queries, gallery).measure(vectors, vectors)
    assert result.first_rank.tolist() == [2, 2]
    by_category = open_tests(StreetPhotos(open_street_to_shop(street.data)), ("s2s",))[0].protocol
    result = StreetTest("s2s", by_category, queries, gallery).measure(vectors, vectors)
    assert result.first_rank.tolist() == [1, 1] and set(result.by_category) == {"tops", "hats"}


@pytest.mark.slow
def test_deepfashions_pairs_are_enough_to_train_on(street: Street, tmp_path: Path) -> None:
    data, names = tmp_path / "data", []
    for number in range(4):
        folder = Path("TOPS/T_Shirt") / f"id_{number:08d}"
        (data / folder).mkdir(parents=True)
        photos = [sorted((street.data / "images").glob(f"df-train-{number:05d}-{side}-*"))[0] for side in ("consumer", "shop")]
        for photo, name in zip(photos, ("comsumer_01.jpg", "shop_01.jpg"), strict=True):
            (data / folder / name).write_bytes(photo.read_bytes())
        status = "val" if number == 3 else "train"
        names.append(f"{folder}/comsumer_01.jpg {folder}/shop_01.jpg {folder.name} {status}")
    (data / "df_train").mkdir()
    write_lines(data / "df_train/V_list_eval_partition.txt", names)
    options = ["--batch-size", "2", "--steps-per-epoch", "1"]
    assert street.train(tmp_path / "run", *street.cache, *options, data=data) == 0
    assert (tmp_path / "run/model.keras").exists() and not (tmp_path / "run/metrics.json").exists()
    assert len(StreetRun(street.config(tmp_path / "a", *TRAINED, *options, "--statuses", "train", data=data)).products) == 3
    with pytest.raises(UsageError, match="has no consumer and shop lists"):
        StreetRun(street.config(tmp_path / "b", *TRAINED, *options, "--test", "df", data=data))


def test_another_run_in_the_folder_is_refused(street: Street, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = StreetRun(street.config(tmp_path / "run", *street.cache))
    run.load_pictures()
    assert street.train(tmp_path / "run", *street.cache, "--draws", "2") == 2
    assert "holds another run (it differs in: draws)" in capsys.readouterr().err
    # What is measured does not make another run.
    StreetRun(street.config(tmp_path / "run", *street.cache, "--test", "s2s", "--ap", "standard"))


def test_the_script_has_the_options_of_the_command() -> None:
    script = Path(__file__).parents[2] / "scripts/train_street_to_shop.py"
    shown = subprocess.run([sys.executable, str(script), "--help"], check=True, capture_output=True, text=True).stdout
    assert all(option in shown for option in ("--data", "--sampler", "--statuses", "--protocol", "--skip-bad-images"))


@pytest.mark.slow
def test_the_script_trains(street: Street, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts/train_street_to_shop.py"
    options = ["--data", str(street.data), "--out", str(tmp_path / "run"), *street.quick, *street.cache, *street.small]
    subprocess.run([sys.executable, str(script), *options, "--dim", "16", "--epochs", "2"], check=True, capture_output=True)
    ours, theirs = (load_adapter(path / "model.keras") for path in (tmp_path / "run", street.model.parent))
    for one, other in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_one_photo_of_two_products_shows_each_its_own_part(street: Street, tmp_path: Path) -> None:
    data = street.copy(tmp_path / "data")
    path = next(data.glob("test/test_shop_*street2shop.json"))
    entries = json.loads(path.read_text())
    other = {**entries[0], "product": 4711, "label": entries[0]["label"] + 1, "category": "hat"}
    path.write_text(json.dumps([*entries, other, entries[0]]))
    part = data / "hat/rtr" / f"hat_0004711_rtr_{Path(other['path']).stem}.jpg"
    part.parent.mkdir(parents=True)
    part.write_bytes((data / entries[1]["path"]).read_bytes())
    photos = StreetPhotos(open_street_to_shop(data))
    gallery = open_tests(photos, ("s2s",))[0].gallery
    ids = [photo.image_id for photo in gallery]
    assert len(set(ids)) == len(entries) + 1 and ids[-1] == ids[0] != ids[-2]
    paths, bad = photos.paths(["test"], progress=False)
    assert not bad and paths[ids[-2]] == part and paths[ids[0]] != part
