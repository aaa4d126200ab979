"""iMaterialist's format: label map, targets, lookups, order of the pictures, padding, and the work list of its download."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from tests.parity.harness import Fixture, checks
from tf_fashion.datasets.fetch import work_list
from tf_fashion.datasets.imaterialist import Imaterialist
from tf_fashion.datasets.labels import OFFICIAL_FILE, LabelMap
from tf_fashion.inputs.images import ImageSpec, decode_image, resize_to, scale_pixels
from tf_fashion.inputs.padding import pad_batch

SAMPLES = "tiny_imat.json"


@checks(r"dataset\.npz")
def dataset(fixture: Fixture) -> None:
    labels = LabelMap.read(fixture.folder / OFFICIAL_FILE)
    fixture.equal(OFFICIAL_FILE, labels.to_config(), LabelMap.imaterialist().to_config())
    fixture.exact("n_attrs", len(labels))
    with np.load(fixture.folder / "preprocess.npz", allow_pickle=False) as archive, tempfile.TemporaryDirectory() as name:
        root = Path(name)
        pictures = sorted((key for key in archive.files if key.startswith("jpeg_")), key=lambda key: int(key[5:]))
        for number, key in enumerate(pictures, 1):
            (root / f"{number}.jpg").write_bytes(archive[key].tobytes())
        data = Imaterialist(root, label_map=labels, train=fixture.folder / SAMPLES)
        ids, targets = data.targets("train")
        fixture.exact("targets", targets)
        _pictures(fixture, data, ids, {f"{n}": archive[key.replace("jpeg", "rgb")] for n, key in enumerate(pictures, 1)})
    for key in fixture.data:
        kind, _, number = key.rpartition("_")
        if kind == "decoded_names":
            fixture.exact(key, labels.names_of_vector(targets[int(number)]))
        elif kind == "decoded_groups":
            fixture.exact(key, labels.tasks_of(labels.ids_of_vector(targets[int(number)])))
    fixture.exact("ids_of_names", labels.ids_of(["Zebra", "Hosiery, Stockings, Tights", "Female"]))

    padded = sorted((key for key in fixture.data if key.startswith("pad_in_")), key=lambda key: int(key[7:]))
    batch = pad_batch([fixture.input(key).transpose(1, 2, 0) for key in padded])
    fixture.compare("pad_out", np.transpose(batch, (0, 3, 1, 2)), rtol=0.0, atol=0.0)


def _pictures(fixture: Fixture, data: Imaterialist, ids: list[str], decoded: dict[str, np.ndarray]) -> None:
    """The transformed pictures in the order of the annotations: from recorded pixels, and from the files."""
    height, width = fixture.data["images"].shape[2:]
    spec, paths = ImageSpec(), data.image_paths(ids)

    def transformed(rgb: object) -> np.ndarray:
        return np.transpose(scale_pixels(resize_to(rgb, height, width, spec), "imaterialist"), (2, 0, 1))

    # One grey level, divided by the smallest deviation.
    recorded = np.stack([transformed(decoded[image_id]) for image_id in ids])
    fixture.compare("images", recorded, rtol=0.0, atol=1.001 / 255 / 0.3283524, note="from recorded pixels")
    files = np.stack([transformed(decode_image(paths[image_id].read_bytes(), spec)) for image_id in ids])
    # Decoders differ by tens of levels at sharp edges; in the mean by about one.
    distance = np.abs(files - fixture.data["images"]).mean(axis=(1, 2, 3))
    fixture.close("images, mean distance of each", distance, np.zeros(len(ids)), rtol=0.0, atol=0.1, note="from the files")


@checks(r"tiny_imat\.json")
def samples(fixture: Fixture) -> None:
    """The same content in the dataset's other spelling gives the same records."""
    content = json.loads(fixture.path.read_text("utf-8"))
    other = {
        "images": [{"image_id": int(image["imageId"]), "url": [image["url"]]} for image in content["images"]],
        "annotations": [
            {"image_id": int(a["imageId"]), "label_id": [int(label) for label in a["labelId"]]} for a in content["annotations"]
        ],
    }
    with tempfile.TemporaryDirectory() as name:
        spelled = Path(name) / "train.json"
        spelled.write_text(json.dumps(other), "utf-8")
        both = [Imaterialist(name, label_map=LabelMap.imaterialist(), train=path) for path in (fixture.path, spelled)]
        records = [[(record.image_id, list(map(str, record.label_ids))) for record in data.records("train")] for data in both]
        listed = [[(image.id, image.url) for image in data.listed_images("train")] for data in both]
    expected = [(annotation["imageId"], annotation["labelId"]) for annotation in content["annotations"]]
    for spelling, ours in zip(("as it is", "other spelling"), records, strict=True):
        fixture.equal(f"annotations, {spelling}", ours, expected)
    for spelling, found in zip(("as it is", "other spelling"), listed, strict=True):
        fixture.equal(f"images, {spelling}", found, [(image["imageId"], image["url"]) for image in content["images"]])


@checks(r"parse_download_list\.json")
def downloads(fixture: Fixture) -> None:
    recorded = json.loads(fixture.path.read_text("utf-8"))
    folder = Path(recorded[0][0]).parent if recorded else Path("OUT")
    work = work_list(fixture.folder / SAMPLES, folder, limit=len(recorded))
    fixture.equal("work list", [[item.path.as_posix(), item.url] for item in work], recorded)
