"""What the command line does with trained models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import hash_file, make_out_folder, write_json
from tf_fashion.datasets import Catalogue, ComposedDataset, open_composed
from tf_fashion.inputs.audit import BadImage, audit_images
from tf_fashion.inputs.feature_cache import FeatureTable
from tf_fashion.inputs.images import load_image
from tf_fashion.models.adapter import DomainAdapter
from tf_fashion.models.attributes import AttributeClassifier
from tf_fashion.models.base import RetrievalModel, load_as, load_path
from tf_fashion.models.composed import ComposedRetriever, load_composed
from tf_fashion.models.dual import DualEncoder
from tf_fashion.reports.sheets import SheetRow, retrieval_sheet
from tf_fashion.reports.tables import format_table, results_table
from tf_fashion.retrieval.index import ExactIndex
from tf_fashion.retrieval.protocol import get_protocol
from tf_fashion.serving.export import export
from tf_fashion.serving.onnx import export_onnx
from tf_fashion.serving.session import SearchSession
from tf_fashion.training.bad_images import refuse_or_report
from tf_fashion.training.composed import summarise_run
from tf_fashion.training.dual_commands import search_dual
from tf_fashion.training.embedding import PictureEmbedder
from tf_fashion.training.evaluation import Embedder, evaluate_composed, needed_images
from tf_fashion.training.results import write_features, write_results
from tf_fashion.training.runs import versions


def evaluate_model(
    model_path: str,
    data: str,
    images: str | None,
    dataset_name: str,
    categories: tuple[str, ...] | None,
    split: str | None,
    protocol_name: str | None,
    out: str,
    report: str | None = None,
    skip_bad_images: bool = False,
    progress: bool = True,
    features: str | None = None,
) -> dict[str, Any]:
    """Evaluates a saved model, prints the table and writes the JSON; see `tf-fashion evaluate composed --help`."""
    target = Path(out)
    make_out_folder(target.parent)
    if target.is_dir():
        raise UsageError(f"--out {out}: expected the name of a JSON file, found a folder.")
    dataset, split, names = open_split(data, images, categories, dataset_name, split)
    protocol_name = protocol_name or dataset.default_protocol
    get_protocol(protocol_name)
    model = load_composed(model_path)
    embedder = Embedder(model)
    dataset, table = split_features(embedder, dataset, split, names, target.with_name("bad_images.csv"), skip_bad_images, progress)
    protocol = get_protocol(protocol_name, dataset=dataset.name, split=split, join=model.caption_style)
    results = evaluate_composed(embedder, dataset, table, protocol, names)
    run = {
        "name": Path(model_path).name,
        "model": {"file": Path(model_path).name, "sha256": hash_file(model_path)},
        "versions": versions(),
        "config": {"split": split, "protocol": protocol_name, "categories": names},
        "seed": None,
        "data_hash": dataset.data_hash([split]),
    }
    metrics = summarise_run(results, protocol, run)
    write_json(target, metrics)
    if report:
        folder = make_out_folder(report)
        write_results(
            folder,
            metrics,
            results,
            dataset,
            protocol,
            f"Composed retrieval on {dataset.name}",
            f"Model {Path(model_path).name}.",
            embedder=embedder,
        )
    if features:
        write_features(make_out_folder(features), results, len(model.level_dims))
    if progress:
        print(results_table(metrics))
    return metrics


def open_split(
    data: str, images: str | None, categories: tuple[str, ...] | None, dataset_name: str, split: str | None
) -> tuple[ComposedDataset, str, list[str]]:
    """A dataset, the split that is meant, and the categories that have it.

    Raises:
        UsageError: no category has the split; or as `open_composed`.
    """
    dataset = open_composed(data, images, categories, dataset_name)
    split = split or dataset.default_split or "val"
    names = [c for c in dataset.categories if split in dataset.splits(c)]
    if not names:
        raise UsageError(f"{data}: there is no split {split!r}. Found: {', '.join(dataset.splits())}.")
    return dataset, split, names


def split_features(
    embedder: Embedder, dataset: ComposedDataset, split: str, names: Sequence[str], bad_list: Path, skip: bool, progress: bool
) -> tuple[ComposedDataset, FeatureTable]:
    """Features of all pictures that a split's evaluation looks at, and the dataset without those that cannot be used.

    Raises:
        DataError: there are such pictures and `skip` is off; `bad_list` names them all.
    """
    wanted = needed_images(dataset, split, names)
    missing = set(dataset.missing_images([split]))
    bad = [BadImage(i, Path(f"{dataset.images_root}/{i}.jpg"), "missing") for i in wanted if i in missing]
    paths = {image_id: dataset.image_path(image_id) for image_id in wanted if image_id not in missing}
    table, unreadable = embedder.features_or_problems(paths, progress)
    bad += unreadable
    refuse_or_report(bad, bad_list, skip)
    return (dataset.without_images([image.id for image in bad]) if bad else dataset), table


def _gallery_paths(folder: str) -> dict[str, Path]:
    items = Catalogue(folder).items
    if not items:
        raise DataError(f"{folder}: there are no pictures.")
    return {item.id: Path(str(item.path)) for item in items}


def _embedder_of(model: RetrievalModel, model_path: str, what: str) -> PictureEmbedder:
    """What runs a model of photos, alone or with sentences.

    Raises:
        UsageError: an adapter without encoder.
        DataError: a model of another kind.
    """
    if isinstance(model, ComposedRetriever):
        return Embedder(model)
    if not isinstance(model, DomainAdapter):
        raise DataError(f"{model_path}: expected a ComposedRetriever or a DomainAdapter, found a {type(model).__name__}.")
    model.require_encoder(what)
    return PictureEmbedder(model)


def _embed_paths(
    embedder: PictureEmbedder, paths: Mapping[str, Path], bad_list: Path, skip: bool, progress: bool
) -> tuple[list[str], np.ndarray]:
    bad = audit_images(paths, embedder.model.image_encoder.image_spec, progress=progress)
    refuse_or_report(bad, bad_list, skip)
    unusable = {image.id for image in bad}
    good = {image_id: path for image_id, path in paths.items() if image_id not in unusable}
    table = embedder.encode_photos(good, progress=progress)
    return list(good), embedder.gallery(table, list(good))


def embed_folder(model_path: str, images: str, out: str, skip_bad_images: bool = False, progress: bool = True) -> ExactIndex:
    """Embeds a folder of photos into an index; photos that are in it already are kept. See `tf-fashion embed --help`.

    Raises:
        UsageError: the index belongs to another model, or the model is an adapter without encoder.
    """
    paths = _gallery_paths(images)
    folder = Path(out)
    make_out_folder(folder.parent)
    notes = {"model_sha256": hash_file(load_path(model_path)), "images": {}}
    index = None
    if (folder / "index.json").exists():
        index = ExactIndex.load(folder)
        if index.notes.get("model_sha256") != notes["model_sha256"]:
            raise UsageError(f"{out}: the index was made by another model. Choose another --out.")
    new = {image_id: path for image_id, path in paths.items() if index is None or image_id not in index}
    if index is not None and not new:
        return index
    embedder = _embedder_of(load_as(model_path, RetrievalModel), model_path, "tf-fashion embed")
    ids, embeddings = _embed_paths(embedder, new, folder.parent / "bad_images.csv", skip_bad_images, progress)
    if index is None:
        index = ExactIndex.build(ids, embeddings, notes=notes)
    else:
        index.add(ids, embeddings)
    index.notes["images"] = {**index.notes.get("images", {}), **{image_id: str(paths[image_id].resolve()) for image_id in ids}}
    index.save(folder)
    return index


def search_folder(
    model_path: str,
    gallery: str | None,
    index_folder: str | None,
    photo: str | None,
    text: str,
    top: int = 8,
    sheet: str | None = None,
    skip_bad_images: bool = False,
    progress: bool = True,
    then: Sequence[str] = (),
    memory: float = 0.5,
) -> str:
    """Finds the photos that a photo and a sentence ask for, in one turn or several; returns a table of each turn.

    A domain adapter takes a photo alone. See `tf-fashion search --help`, and `SearchSession` for how turns are combined.
    """
    if top < 1:
        raise UsageError(f"--top: expected at least 1, found {top}.")
    if photo is not None and not Path(photo).is_file():
        raise UsageError(f"--photo {photo}: no such file.")
    model = load_as(model_path, RetrievalModel)
    if isinstance(model, DualEncoder):
        if then:
            raise UsageError("--then needs a model of `train composed`: a dual encoder does not compose photos with sentences.")
        return search_dual(model, gallery, index_folder, photo, text, top, sheet, skip_bad_images, progress)
    embedder = _embedder_of(model, model_path, "tf-fashion search")
    if isinstance(model, DomainAdapter):
        if text.strip() or then:
            given = "--text" if text.strip() else "--then"
            raise UsageError(f"{given}: this model is a domain adapter, which finds photos by a photo alone. Leave out sentences.")
        if photo is None:
            raise UsageError("--photo is missing: this model is a domain adapter, which finds photos by a photo.")
    elif photo is None:
        raise UsageError("--photo is missing: this model composes a photo with a sentence. A model of `train dual` searches by words.")
    spec = embedder.model.image_encoder.image_spec
    load_image(Path(photo), spec)
    if index_folder is not None:
        index = ExactIndex.load(index_folder)
        if index.notes.get("model_sha256") != hash_file(model_path):
            raise UsageError(f"--index {index_folder}: the index was made by another model. Make one with: tf-fashion embed")
        paths = {image_id: Path(path) for image_id, path in index.notes.get("images", {}).items()}
    else:
        paths = _gallery_paths(str(gallery))
        bad_list = (Path(sheet).parent if sheet else Path.cwd()) / "bad_images.csv"
        ids, embeddings = _embed_paths(embedder, paths, bad_list, skip_bad_images, progress)
        index = ExactIndex.build(ids, embeddings)

    def embed_query(reference: Path, sentence: str) -> np.ndarray:
        features = embedder.encode(load_image(reference, spec)[None])
        if isinstance(model, DomainAdapter):
            return model.embed_features(features).numpy()[0]
        return embedder.model.embed_query(features, *embedder.model.text_inputs([sentence])).numpy()[0]

    session = SearchSession(embed_query, index, paths, Path(photo), memory)
    tables, rows = [], []
    for sentence in (text, *then):
        turn = session.ask(sentence, top)
        rows.append(
            SheetRow(
                turn.reference, turn.text, [paths.get(i) for i in turn.ids], turn.ids, turn.scores, reference_id=turn.reference_id or ""
            )
        )
        table = [
            [rank, image_id, score, str(paths.get(image_id, ""))]
            for rank, (image_id, score) in enumerate(zip(turn.ids, turn.scores, strict=True), 1)
        ]
        heading = [f"{turn.reference_id or turn.reference}: {turn.text}"] if then else []
        tables.append("\n".join([*heading, format_table(["rank", "id", "score", "file"], table, digits=4)]))
    if sheet:
        retrieval_sheet(sheet, rows, title="Search", columns=min(top, 8), show_ids=True)
    return "\n\n".join(tables)


def export_model(model_path: str, out: str, format: str = "saved_model", layout: str = "pixels") -> str:
    """Writes a model for serving; returns a line about it. See `tf-fashion export --help`.

    Raises:
        UsageError, DataError: as `export` and `export_onnx`; the original's layout for another model than an attribute classifier; an
            adapter without encoder.
    """
    model = load_as(model_path, RetrievalModel)
    if isinstance(model, DomainAdapter):
        model.require_encoder("tf-fashion export")
    if format == "saved_model":
        return f"The SavedModel is in {export(model, out)}"
    record: dict[str, Any] = {"kind": type(model).__name__}
    if isinstance(model, AttributeClassifier):
        record |= {"label_map": model.label_map.to_config(), "exclusive": list(model.exclusive)}
    elif layout == "original":
        raise UsageError(f"--layout original: expected an AttributeClassifier, found a {type(model).__name__}.")

    def picture_side(images: Any) -> dict[str, Any]:
        features = model.encode_image(images, training=False)
        embedding = model.embed_features(features)
        if not isinstance(model, AttributeClassifier):
            return {"embedding": embedding}
        logits = model.logits_of(features)
        return {"probabilities": model.probabilities(logits), "logits": logits, "embedding": embedding}

    encoder = model.image_encoder
    only = {"outputs": ("logits",), "scaling": encoder.scaling} if layout == "original" else {}
    return export_onnx(picture_side, out, encoder.image_size, layout=layout, record=record, **only).format()
