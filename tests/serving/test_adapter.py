"""A domain adapter leaves the house: SavedModel, ONNX, index and search by a photo alone."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from tf_fashion.cli import main
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets.labels import LabelMap
from tf_fashion.encoders.image import ImageEncoder
from tf_fashion.inputs.images import load_image
from tf_fashion.models import AttributeClassifier, DomainAdapter
from tf_fashion.retrieval.index import ExactIndex
from tf_fashion.serving.export import ExportedAdapter, export
from tf_fashion.serving.onnx import OnnxModel
from tf_fashion.training.commands import embed_folder, export_model, search_folder


def encoder() -> ImageEncoder:
    return ImageEncoder("small_cnn", image_size=32, taps=("stage4", "stage5"), descriptors=("colour",))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    random = np.random.default_rng(0)
    for number in range(7):
        small = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((50, 40)).save(folder / f"p{number}.png")
    return folder


@pytest.fixture(scope="module")
def adapter(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    keras.utils.set_random_seed(4)
    model = DomainAdapter(encoder(), dim=6, standardize=True)
    spec = model.image_encoder.image_spec
    features = model.encode_image(np.stack([load_image(photo, spec) for photo in sorted(shop.iterdir())])).numpy()
    model.adapt_input(features, list(model.image_encoder.block_widths.values()))
    model.start_from_components(features)
    path = tmp_path_factory.mktemp("run") / "model.keras"
    model.save(path)
    return path


def own(adapter: Path, photos: list[Path]) -> np.ndarray:
    model = keras.models.load_model(adapter)
    return model.embed_image(np.stack([load_image(photo, model.image_encoder.image_spec) for photo in photos])).numpy()


@pytest.mark.slow
def test_the_export_embeds_as_the_model_and_survives_a_broken_photo(adapter: Path, shop: Path, tmp_path: Path) -> None:
    folder = export(keras.models.load_model(adapter), tmp_path / "1", {"note": "x"})
    exported = ExportedAdapter(folder)
    photos = sorted(shop.iterdir())[:3]
    embeddings, valid = exported.embed_image([*(photo.read_bytes() for photo in photos), b"no picture"])
    assert valid.tolist() == [True, True, True, False] and embeddings.shape == (4, 6)
    np.testing.assert_allclose(embeddings[:3], own(adapter, photos), atol=1e-5)
    assert exported.record["kind"] == "adapter" and exported.record["note"] == "x" and exported.record["dim"] == 6
    assert json.loads((folder / "tf_fashion.json").read_text())["image_spec"]["size"] == 32
    assert str(folder) in export_model(str(adapter), str(folder))


@pytest.mark.slow
def test_onnx(adapter: Path, shop: Path, tmp_path: Path) -> None:
    for package in ("onnx", "tf2onnx", "onnxruntime"):
        pytest.importorskip(package)
    assert "output embedding: batch x 6" in export_model(str(adapter), str(tmp_path / "m.onnx"), "onnx")
    model = OnnxModel(tmp_path / "m.onnx")
    photo = next(shop.iterdir())
    pixels = load_image(photo, encoder().image_spec)[None]
    np.testing.assert_allclose(model(pixels)["embedding"], own(adapter, [photo]), atol=1e-3)
    assert model.record["kind"] == "DomainAdapter"
    with pytest.raises(UsageError, match="found a DomainAdapter"):
        export_model(str(adapter), str(tmp_path / "m.onnx"), "onnx", "original")


def test_embed_and_search_by_a_photo_alone(adapter: Path, shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    index = embed_folder(str(adapter), str(shop), str(tmp_path / "index"), progress=False)
    photos = sorted(shop.iterdir())
    wanted = own(adapter, photos)
    assert len(index) == len(ExactIndex.load(tmp_path / "index")) == 7
    street = tmp_path / "street.png"
    Image.open(photos[3]).rotate(4).save(street)
    options = ["search", "--model", str(adapter), "--photo", str(street), "--top", "3", "--quiet"]
    assert main([*options, "--gallery", str(shop), "--sheet", str(tmp_path / "found.png")]) == 0
    by_folder = [line.split()[1:3] for line in capsys.readouterr().out.splitlines()[2:]]
    order = np.argsort(-(wanted @ own(adapter, [street])[0]))[:3]
    assert [name for name, _ in by_folder] == [photos[place].stem for place in order]
    with Image.open(tmp_path / "found.png") as sheet:
        assert sheet.width > 200
    found = search_folder(str(adapter), None, str(tmp_path / "index"), str(photos[3]), "", progress=False)
    names = [line.split()[1] for line in found.splitlines()[2:]]
    assert len(names) == 6 and photos[3].stem not in names


def test_messages(adapter: Path, shop: Path, tmp_path: Path) -> None:
    photo = str(next(shop.iterdir()))
    with pytest.raises(UsageError, match="--text: .* a photo alone"):
        search_folder(str(adapter), str(shop), None, photo, "is red")
    with pytest.raises(UsageError, match="--then: .* a photo alone"):
        search_folder(str(adapter), str(shop), None, photo, "", then=["is red"])
    with pytest.raises(UsageError, match="--photo is missing"):
        search_folder(str(adapter), str(shop), None, None, "")
    bare = tmp_path / "bare.keras"
    DomainAdapter(feature_dim=4).save(bare)
    calls = [
        lambda: export(DomainAdapter(feature_dim=4), tmp_path / "1"),
        lambda: export_model(str(bare), str(tmp_path / "1")),
        lambda: export_model(str(bare), str(tmp_path / "m.onnx"), "onnx"),
        lambda: embed_folder(str(bare), str(shop), str(tmp_path / "index"), progress=False),
        lambda: search_folder(str(bare), str(shop), None, photo, ""),
    ]
    for call in calls:
        with pytest.raises(UsageError, match=r"takes photos, and this DomainAdapter works on vectors.*start_from"):
            call()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare.keras"]
    other = tmp_path / "attributes.keras"
    AttributeClassifier(ImageEncoder("small_cnn", image_size=32), LabelMap.of_tasks({"color": ["red", "blue"]})).save(other)
    for call in (
        lambda: embed_folder(str(other), str(shop), str(tmp_path / "index"), progress=False),
        lambda: search_folder(str(other), str(shop), None, photo, ""),
    ):
        with pytest.raises(DataError, match="a ComposedRetriever or a DomainAdapter, found a AttributeClassifier"):
            call()
