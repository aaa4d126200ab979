"""What the command line does with dual encoders and with feature files of image-text retrieval."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import atomic_write, hash_file, hash_json, make_out_folder, write_json
from tf_fashion.datasets.catalogue import TEXT_COLUMNS, Catalogue, read_table
from tf_fashion.datasets.image_text import ImageTextDataset, read_groups
from tf_fashion.datasets.json_lines import read_lines
from tf_fashion.datasets.pictures import PictureStore
from tf_fashion.inputs.audit import BadImage, audit_images
from tf_fashion.inputs.feature_cache import FeatureCache, image_batches
from tf_fashion.inputs.images import load_image
from tf_fashion.inputs.unpacked import picture_paths
from tf_fashion.models.dual import DualEncoder, load_dual
from tf_fashion.reports.dual import directions_table, leaderboard_table
from tf_fashion.reports.sheets import SheetRow, retrieval_sheet
from tf_fashion.reports.tables import format_table
from tf_fashion.retrieval.dual import dual_truth, evaluate_dual, summarise_dual
from tf_fashion.retrieval.dual_protocol import DualProtocol, get_dual_protocol
from tf_fashion.retrieval.feature_files import FeatureFile, Key, checked_id, read_feature_file, write_feature_file
from tf_fashion.retrieval.leaderboard import evaluate_task, leaderboard_tasks
from tf_fashion.retrieval.predictions import (
    read_truth,
    score_files,
    score_files_original,
    write_predictions,
    write_scores,
)
from tf_fashion.retrieval.search import Metric, Precision, top_k, unit_rows
from tf_fashion.retrieval.zero_shot import FASHION_TEMPLATES, class_embeddings, classify, score_classes
from tf_fashion.training.bad_images import refuse_or_report
from tf_fashion.training.dual import open_data
from tf_fashion.training.dual_evaluation import DualEmbedder, evaluate_split
from tf_fashion.training.results import write_dual_results
from tf_fashion.training.runs import versions

PART_ROWS = 1024
IMAGES_NAME, TEXTS_NAME = "images.img_feat", "texts.txt_feat"


def predict_retrieval(
    image_features: str,
    text_features: str,
    out: str | None = None,
    output_images: str | None = None,
    output_texts: str | None = None,
    image_truth: str | None = None,
    text_truth: str | None = None,
    image_scores: str | None = None,
    text_scores: str | None = None,
    top_k: int = 10,
    block: int = 8192,
    precision: Precision = "float64",
    original_ids: bool = False,
    original_errors: bool = False,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """Writes predictions of both directions, and score files where the truth is given; see `tf-fashion predict retrieval --help`.

    Returns:
        "image" and "text" (the kind of query) -> content of the score file; empty without truth.
    """
    folder = make_out_folder(out) if out else None
    targets: dict[str, tuple[Path, str | None, Path | None]] = {}
    given = {"image": (output_images, image_truth, image_scores), "text": (output_texts, text_truth, text_scores)}
    for side, (predictions, truth, scores) in given.items():
        if predictions is None and folder is None:
            raise UsageError(f"Where should the predictions go? Give --out DIR, or --output-{side}s FILE.")
        where = Path(predictions) if predictions else folder / f"{side}_predictions.jsonl"  # type: ignore[operator]
        if truth and not scores and folder is None:
            raise UsageError(f"Where should the scores go? Give --out DIR, or --{side}-out-path FILE.")
        into = None if not truth else Path(scores) if scores else folder / f"{side}_output.json"  # type: ignore[operator]
        for path in (where, into):
            if path is not None:
                make_out_folder(path.parent)
        targets[side] = where, truth, into
    files = {
        "image": read_feature_file(image_features, "image_id", progress),
        "text": read_feature_file(text_features, "query_id", progress),
    }
    results = {}
    keys: dict[str, Key] = {"image": "image_id", "text": "query_id"}
    for side, other in (("text", "image"), ("image", "text")):
        where, truth, into = targets[side]
        found = write_predictions(
            where, keys[side], files[side], files[other], top_k, block=block, precision=precision, progress=progress
        )
        if truth is None or into is None:
            continue
        remarks: list[str] = []
        if original_errors:
            scores_of = score_files_original(truth, found, keys[side])
        else:
            scores_of, remarks = score_files(truth, found, keys[side], original_ids=original_ids)
        write_scores(into, scores_of)
        for remark in remarks:
            print(f"tf-fashion: {remark}", file=sys.stderr)
        results[side] = scores_of
    return results


def retrieval_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The score files of `predict_retrieval` as a table, failures with their reasons."""
    names = {"text": "text to image", "image": "image to text"}
    good = {side: scores["scoreJson"] for side, scores in results.items() if scores["success"]}
    lines = []
    if good:
        keys = list(next(iter(good.values())))[2:]
        rows = [[names[side], *(values[key] for key in keys), values["mean_recall"]] for side, values in good.items()]
        lines.append(format_table(["direction", *(f"R@{key[1:]}" for key in keys), "mean"], rows))
    lines += [f"{names[side]}: no score: {scores['errorMsg']}" for side, scores in results.items() if not scores["success"]]
    return "\n".join(lines)


def evaluate_dual_command(
    out: str,
    model: str | None = None,
    image_features: str | None = None,
    text_features: str | None = None,
    data: str | None = None,
    images: str | None = None,
    dataset_name: str = "auto",
    data_options: Mapping[str, Any] | None = None,
    split: str | None = None,
    text_truth: str | None = None,
    image_truth: str | None = None,
    groups: str | None = None,
    protocol_name: str = "full",
    protocol_options: Mapping[str, Any] | None = None,
    metric: Metric = "dot",
    precision: Precision = "float64",
    name: str | None = None,
    report: str | None = None,
    skip_bad_images: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Measures a model on a dataset, or feature files against a truth; see `tf-fashion evaluate dual --help`."""
    target = Path(out)
    make_out_folder(target.parent)
    if target.is_dir():
        raise UsageError(f"--out {out}: expected the name of a JSON file, found a folder.")
    protocol = get_dual_protocol(protocol_name, **dict(protocol_options or {}))
    if (model is None) == (image_features is None or text_features is None):
        raise UsageError("Give either --model FILE, or both --image-features FILE and --text-features FILE.")
    run: dict[str, Any] = {"versions": versions(), "seed": None}
    if data is None:
        if model is not None:
            raise UsageError("--model needs --data DIR (or embed your files first: tf-fashion embed dual).")
        if text_truth is None and image_truth is None:
            raise UsageError("The right answers are missing: give --data DIR, --text-truth FILE or --image-truth FILE.")
        if report is not None:
            raise UsageError("--report shows pictures: it needs --data DIR.")
        files = (
            read_feature_file(str(image_features), "image_id", progress),
            read_feature_file(str(text_features), "query_id", progress),
        )
        run |= {"name": name or Path(str(image_features)).name, "features": _described(files)}
        metrics = _evaluate_files(files, text_truth, image_truth, groups, protocol, metric, precision, run)
    else:
        if text_truth or image_truth:
            raise UsageError("--data has its own right answers: leave --text-truth and --image-truth away.")
        dataset = open_data(data, images, dataset_name, groups, data_options)
        split = split or dataset.default_split or "val"
        protocol = protocol.replace(dataset=dataset.name, split=split)
        bad_list = target.with_name("bad_images.csv")
        if model is not None:
            embedder = DualEmbedder(load_dual(model))
            dataset, paths, rows = embedded_images(embedder, dataset, split, bad_list, skip_bad_images, progress)
            texts = embedder.texts([query.text for query in dataset.queries(split)])
            run |= {"name": name or Path(model).name, "model": {"file": Path(model).name, "sha256": hash_file(model)}}
        else:
            files = (
                read_feature_file(str(image_features), "image_id", progress),
                read_feature_file(str(text_features), "query_id", progress),
            )
            rows = _rows_of(files[0], list(dataset.image_truth(split)))
            texts = _rows_of(files[1], [query.query_id for query in dataset.queries(split)])
            if metric == "cosine":
                rows, texts = unit_rows(rows), unit_rows(texts)
            paths = _known_paths(dataset, split) if report else {}
            run |= {"name": name or Path(str(image_features)).name, "features": _described(files)}
        run |= {"data_hash": dataset.data_hash([split]), "config": {"split": split, "metric": metric}}
        evaluation = evaluate_split(dataset, split, protocol, rows, texts)
        metrics = summarise_dual(evaluation.result, run)
        if report:
            folder = make_out_folder(report)
            title = f"Image-text retrieval on {dataset.name}"
            write_dual_results(folder, metrics, evaluation, paths, protocol, title, f"{run['name']}.")
    write_json(target, metrics)
    if progress:
        print(directions_table(metrics))
    return metrics


def _evaluate_files(
    files: tuple[FeatureFile, FeatureFile],
    text_truth: str | None,
    image_truth: str | None,
    groups: str | None,
    protocol: DualProtocol,
    metric: Metric,
    precision: Precision,
    run: dict[str, Any],
) -> dict[str, Any]:
    truths: dict[str, Any] = {
        "text_truth": read_truth(text_truth, "query_id").answers if text_truth else None,
        "image_truth": read_truth(image_truth, "image_id").answers if image_truth else None,
    }
    group_of = read_group_file(groups) if groups else None
    fingerprint = dual_truth(files[0].ids, files[1].ids, **truths).fingerprint
    # Nothing else says which data the files are about, so that numbers of different files are never compared by mistake.
    protocol = protocol.replace(dataset=f"files-{fingerprint[:12]}", split="given")
    if metric == "dot":
        for file in files:
            lengths = np.linalg.norm(file.values[:: max(1, len(file) // 1000)], axis=1)
            if np.abs(lengths - 1).max() > 0.01:
                print(
                    f"tf-fashion: {file.path}: features are not of length one, so long ones win; --metric cosine compares directions.",
                    file=sys.stderr,
                )
    result = evaluate_dual(
        files[0].values,
        files[0].ids,
        files[1].values,
        files[1].ids,
        **truths,
        protocol=protocol,
        groups=group_of,
        metric=metric,
        precision=precision,
    )
    return summarise_dual(result, {**run, "data_hash": fingerprint, "config": {"metric": metric}})


def embed_dual(
    model: str,
    out: str,
    data: str | None = None,
    images: str | None = None,
    dataset_name: str = "auto",
    data_options: Mapping[str, Any] | None = None,
    split: str | None = None,
    texts: str | None = None,
    formats: Sequence[str] = ("npz",),
    dtype: str = "float32",
    batch_size: int = 32,
    skip_bad_images: bool = False,
    progress: bool = True,
) -> list[Path]:
    """Embeds pictures and texts into feature files; see `tf-fashion embed dual --help`.

    Finished parts are kept in the output folder until all are there, so that the same command continues after an interruption, or
    after bad pictures have been repaired.

    Returns:
        The files that were written.
    """
    unknown = sorted(set(formats) - {"npz", "jsonl"})
    if unknown or not formats:
        raise UsageError(f"--format: expected npz, jsonl or both; found {', '.join(unknown) or 'nothing'}.")
    if dtype not in ("float16", "float32"):
        raise UsageError(f"--dtype: expected float32 or float16, found {dtype!r}.")
    if batch_size < 1:
        raise UsageError(f"--batch-size: expected at least 1, found {batch_size}.")
    if data is None and images is None and texts is None:
        raise UsageError("There is nothing to embed: give --data DIR, --images DIR, --texts FILE.")
    folder = make_out_folder(out)
    paths: dict[str, Path] = {}
    bad: list[BadImage] = []
    sentences: tuple[list[Any], list[str]] = ([], [])
    if data is not None:
        dataset = open_data(data, images, dataset_name, None, data_options)
        wanted = [split] if split else dataset.splits()
        paths, bad = picture_paths(dataset.pictures, dataset.image_ids(wanted), progress=progress)
        queries = {query.query_id: query.text for part in wanted for query in dataset.queries(part)}
        sentences = list(queries), list(queries.values())
    elif images is not None:
        paths, bad = photos_of(images, progress)
    if texts is not None:
        if data is not None:
            raise UsageError("--data has its own texts: leave --texts away.")
        sentences = read_text_file(texts)
    embedder = DualEmbedder(load_dual(model), batch_size)
    signature = hash_file(model)
    written: list[Path] = []
    if bad and not paths:
        refuse_or_report(bad, folder / "bad_images.csv", False)
    if paths:
        parts = _Parts(folder / ".parts-images", signature, [_stamp(image_id, path) for image_id, path in paths.items()])
        ids = list(paths)
        spec = embedder.model.image_encoder.image_spec

        def embed_photos(wanted: Sequence[slice]) -> Iterator[_Part]:
            chosen = {image_id: paths[image_id] for part in wanted for image_id in ids[part]}
            wrong = {image.id: image for image in audit_images(chosen, spec, progress=progress)}
            good = [path for image_id, path in chosen.items() if image_id not in wrong]
            rows = _Rows(embedder.features(embedder.encode(batch).numpy()) for batch in image_batches(good, spec, batch_size))
            for part in wanted:
                fine = np.array([image_id not in wrong for image_id in ids[part]])
                yield fine, rows.take(int(fine.sum())), [wrong[image_id] for image_id in ids[part] if image_id in wrong]

        good, values, wrong = parts.fill(embed_photos, "embedding images", progress)
        refuse_or_report([*bad, *wrong], folder / "bad_images.csv", skip_bad_images)
        kept = [image_id for image_id, fine in zip(ids, good, strict=True) if fine]
        written += _write_both(folder, IMAGES_NAME, kept, values, "image_id", formats, dtype, progress)
        parts.remove()
    if sentences[0]:
        parts = _Parts(folder / ".parts-texts", signature, [[str(i), text] for i, text in zip(*sentences, strict=True)])

        def embed_texts(wanted: Sequence[slice]) -> Iterator[_Part]:
            for part in wanted:
                values = embedder.texts(sentences[1][part])
                yield np.ones(len(values), bool), values, []

        _, values, _ = parts.fill(embed_texts, "embedding texts", progress)
        written += _write_both(folder, TEXTS_NAME, sentences[0], values, "query_id", formats, dtype, progress)
        parts.remove()
    return written


def search_dual(
    model: DualEncoder,
    gallery: str | None,
    features: str | None,
    photo: str | None,
    text: str,
    top: int = 8,
    sheet: str | None = None,
    skip_bad_images: bool = False,
    progress: bool = True,
) -> str:
    """Finds the photos that a text, a photo, or both (the sum of their embeddings) ask for; returns a table.

    See `tf-fashion search --help`.

    Raises:
        UsageError: neither text nor photo, or a feature file of another width.
    """
    if not text.strip() and photo is None:
        raise UsageError("There is nothing to search for: give --text, --photo, or both.")
    embedder = DualEmbedder(model)
    query = np.zeros((1, model.dim), np.float32)
    if photo is not None:
        query += embedder.features(embedder.encode(load_image(Path(photo), model.image_encoder.image_spec)[None]).numpy())
    if text.strip():
        query += embedder.texts([text])
    paths: dict[str, Path] = {}
    if features is not None:
        file = read_feature_file(features, "image_id", progress)
        ids, values = [str(image_id) for image_id in file.ids], file.values
        if values.shape[1] != model.dim:
            raise UsageError(f"--index {features}: its features are {values.shape[1]} wide, the model's {model.dim}. Embed again.")
    else:
        paths, bad = photos_of(str(gallery), progress)
        bad += audit_images(paths, model.image_encoder.image_spec, progress=progress)
        refuse_or_report(bad, (Path(sheet).parent if sheet else Path.cwd()) / "bad_images.csv", skip_bad_images)
        wrong = {image.id for image in bad}
        ids = [image_id for image_id in paths if image_id not in wrong]
        values = embedder.images([paths[image_id] for image_id in ids], progress)
    scores, places = top_k(unit_rows(query), np.asarray(values, np.float32), min(top, len(ids)))
    found = [ids[place] for place in places[0]]
    if sheet:
        row = SheetRow(Path(photo) if photo else None, text, [paths.get(i) for i in found], found, [float(x) for x in scores[0]])
        retrieval_sheet(sheet, [row], title="Search", columns=min(top, 8), show_ids=True)
    rows = [[rank, i, float(score), str(paths.get(i, ""))] for rank, (i, score) in enumerate(zip(found, scores[0], strict=True), 1)]
    return format_table(["rank", "id", "score", "file"], rows, digits=4)


def predict_zero_shot(
    model: str,
    classes: str | None,
    out: str,
    images: str | None = None,
    image_features: str | None = None,
    labels: str | None = None,
    templates: str | None = None,
    top: int = 1,
    skip_bad_images: bool = False,
    progress: bool = True,
) -> dict[str, Any] | None:
    """Gives pictures the class whose name is nearest; see `tf-fashion predict zero-shot --help`.

    Returns:
        With labels, the content of `scores.json`; else None.
    """
    if (images is None) == (image_features is None):
        raise UsageError("Give either --images DIR or --image-features FILE.")
    if classes is None and labels is None:
        raise UsageError("The classes are missing: give --classes A,B,C or a file with one per line, or --labels.")
    folder = make_out_folder(out)
    sentences = tuple(read_words(templates)) if templates else FASHION_TEMPLATES
    right = read_group_file(labels) if labels else None
    names = read_words(classes) if classes else sorted(set((right or {}).values()))
    embedder = DualEmbedder(load_dual(model))
    if image_features is not None:
        file = read_feature_file(image_features, "image_id", progress)
        ids, rows = file.names, file.values
    else:
        paths, bad = photos_of(str(images), progress)
        bad += audit_images(paths, embedder.model.image_encoder.image_spec, progress=progress)
        refuse_or_report(bad, folder / "bad_images.csv", skip_bad_images)
        unusable = {image.id for image in bad}
        ids = [image_id for image_id in paths if image_id not in unusable]
        rows = embedder.images([paths[image_id] for image_id in ids], progress)
    if right is not None:
        absent = [image_id for image_id in ids if image_id not in right]
        if absent:
            raise DataError(f"--labels {labels}: {len(absent)} of {len(ids)} pictures have no label: {', '.join(absent[:5])}.")
    numbers, cosines = classify(rows, class_embeddings(names, embedder.texts, sentences), min(max(top, 1), len(names)))
    with atomic_write(folder / "predictions.csv") as table:
        writer = csv.writer(table, lineterminator="\n")
        ranks = range(1, numbers.shape[1] + 1)
        writer.writerow(["id", *(["label"] if right else []), *(f"{word}{n}" for n in ranks for word in ("class", "cosine"))])
        for image_id, found, scores in zip(ids, numbers, cosines, strict=True):
            cells = [cell for n, score in zip(found, scores, strict=True) for cell in (names[n], f"{score:.6f}")]
            writer.writerow([image_id, *([right[image_id]] if right else []), *cells])
    if right is None:
        return None
    scored = score_classes(names, [right[image_id] for image_id in ids], numbers[:, 0])
    summary = {
        **scored.summary(),
        "names": list(names),
        "templates": list(sentences),
        "run": {"model": {"file": Path(model).name, "sha256": hash_file(model)}, "versions": versions()},
    }
    write_json(folder / "scores.json", summary)
    if progress:
        columns = zip(scored.names, scored.precision, scored.recall, scored.f1, scored.support, strict=True)
        rows_of = [[name, *(100 * float(v) for v in values), int(count)] for name, *values, count in columns if count]
        print(format_table(["class", "precision", "recall", "F1", "images"], rows_of))
        print(
            f"accuracy {100 * scored.accuracy:.2f}  weighted F1 {100 * scored.weighted_f1:.2f}  macro F1 {100 * scored.macro_f1:.2f}"
            f"  (percent, {len(ids)} pictures, {len(names)} classes, {len(sentences)} templates)"
        )
    return summary


def evaluate_leaderboard(
    model: str,
    folder: str,
    out: str,
    table: str | None = None,
    images: str | None = None,
    text_column: str | None = None,
    category_column: str = "category",
    sub_category_column: str | None = None,
    name: str | None = None,
    dataset_name: str | None = None,
    skip_bad_images: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Measures a model on the tasks of Marqo's leaderboard; see `tf-fashion evaluate leaderboard --help`."""
    target = Path(out)
    make_out_folder(target.parent)
    catalogue = Catalogue(folder, table, images)
    items = [item for item in catalogue.items if item.path is not None]
    columns = [c for c in (text_column, category_column, sub_category_column) if c is not None]
    absent = [column for column in columns if column not in catalogue.attribute_names]
    if absent:
        raise UsageError(f"{folder}: no column {', '.join(absent)}. Found: {', '.join(catalogue.attribute_names) or 'none'}.")
    embedder = DualEmbedder(load_dual(model))
    paths = {item.id: Path(str(item.path)) for item in items}
    bad = audit_images(paths, embedder.model.image_encoder.image_spec, progress=progress)
    refuse_or_report(bad, target.with_name("bad_images.csv"), skip_bad_images)
    unusable = {image.id for image in bad}
    items = [item for item in items if item.id not in unusable]
    texts = [item.attributes.get(text_column, "") if text_column else item.text for item in items]
    records = [{**item.attributes, "__text__": text} for item, text in zip(items, texts, strict=True)]
    image_rows = embedder.images([paths[item.id] for item in items], progress)
    text_rows = embedder.texts(texts)
    tasks = leaderboard_tasks("__text__", category_column, sub_category_column)
    found = [evaluate_task(task, records, image_rows, embedder.texts, text_rows) for task in tasks]
    called, where = name or Path(model).name, dataset_name or Path(folder).resolve().name
    result = {
        "model": called,
        "dataset": where,
        "tasks": found,
        "run": {"model": {"file": Path(model).name, "sha256": hash_file(model)}, "versions": versions()},
    }
    write_json(target, result)
    if progress:
        print(leaderboard_table({called: {where: found}}, "text"))
    return result


def embedded_images(
    embedder: DualEmbedder, dataset: ImageTextDataset, split: str, bad_list: Path, skip: bool, progress: bool
) -> tuple[ImageTextDataset, dict[str, Path], np.ndarray]:
    """Embeddings of a split's pictures in the order of `image_truth`, their files, and the dataset without unusable ones.

    Features of photos that a training run with this (frozen) encoder has cached are taken from there, and new ones are added.

    Raises:
        DataError: there are unusable pictures and `skip` is off; `bad_list` names them all.
    """
    paths, bad = picture_paths(dataset.pictures, dataset.image_truth(split), progress=progress)
    encoder = embedder.model.image_encoder
    cache = FeatureCache.existing(encoder)
    if cache is not None:
        bad += cache.fill(paths, encoder.image_spec, embedder.encode, progress=progress)
    else:
        bad += audit_images(paths, encoder.image_spec, progress=progress)
    refuse_or_report(bad, bad_list, skip)
    if bad:
        dataset = dataset.without_images([image.id for image in bad])
    used = {image_id: paths[image_id] for image_id in dataset.image_truth(split)}
    if cache is not None:
        return dataset, used, embedder.features(cache.table(used).values)
    return dataset, used, embedder.images(list(used.values()), progress)


def photos_of(folder: str, progress: bool = True) -> tuple[dict[str, Path], list[BadImage]]:
    """The pictures of a folder, a catalogue or an `.npz` file of arrays, and those that are missing."""
    if Path(folder).suffix == ".npz":
        store = PictureStore([folder])
        return picture_paths(store, store.archive_ids(), progress=progress)
    items = Catalogue(folder).items
    if not items:
        raise DataError(f"{folder}: there are no pictures.")
    missing = [BadImage(item.id, Path(f"{folder}/{item.id}"), "missing") for item in items if item.path is None]
    return {item.id: Path(item.path) for item in items if item.path is not None}, missing


def read_text_file(spec: str) -> tuple[list[Any], list[str]]:
    """Ids and texts of a file: JSON lines with `query_id` and `query_text`, CSV (`FILE:COLUMN` says which column), or plain lines.

    Raises:
        UsageError: no such file or column, another ending.
        DataError: damaged lines, repeated ids, no text.
    """
    name, column = _split_column(spec)
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"--texts {spec}: no such file.")
    ids: list[Any] = []
    texts: list[str] = []
    if path.suffix == ".jsonl":
        for number, line in read_lines(path):
            where = f"{path}, line {number}"
            if "query_id" not in line or not isinstance(line.get("query_text"), str):
                raise DataError(f"{where}: expected the keys query_id and query_text, found {', '.join(line) or 'none'}.")
            ids.append(checked_id(line["query_id"], where))
            texts.append(line["query_text"])
    elif path.suffix in (".csv", ".tsv"):
        table = read_table(path)
        column = column or next((known for known in TEXT_COLUMNS if known in table.columns), None)
        if column is None or column not in table.columns:
            raise UsageError(f"--texts {spec}: no column {column or 'of texts'}. Found: {', '.join(table.columns)}.")
        key = next((known for known in table.columns if known.lower() in ("query_id", "id", "image_id", "item_id")), None)
        for row, (_, values) in enumerate(table.rows):
            ids.append(row if key is None else values[table.columns.index(key)])
            texts.append(values[table.columns.index(column)])
    elif path.suffix == ".txt":
        texts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        ids = list(range(len(texts)))
    else:
        raise UsageError(f"--texts {spec}: expected a .jsonl, .csv or .txt file.")
    if not texts:
        raise DataError(f"{path}: there are no texts.")
    if len({str(entry) for entry in ids}) < len(ids):
        raise DataError(f"{path}: some ids are there more than once; every text needs its own.")
    return ids, texts


def read_group_file(spec: str) -> dict[str, str]:
    """Id -> value of a column: `FILE` or `FILE:COLUMN` (a CSV file with an `id` column)."""
    path, column = _split_column(spec)
    return read_groups(Path(path), column)


def read_words(spec: str) -> list[str]:
    """Names or sentences: a text file with one per line, or `A,B,C`."""
    if Path(spec).is_file():
        return [line.strip() for line in Path(spec).read_text(encoding="utf-8").splitlines() if line.strip()]
    if spec.endswith((".txt", ".csv", ".json")):
        raise UsageError(f"{spec}: no such file.")
    return [part.strip() for part in spec.split(",") if part.strip()]


# Which items are good, the rows of the good ones, and the bad ones.
_Part = tuple[np.ndarray, np.ndarray, list[BadImage]]


class _Rows:
    """Takes rows from blocks of another length."""

    def __init__(self, blocks: Iterable[np.ndarray]) -> None:
        self._blocks = iter(blocks)
        self._rest = np.empty((0, 0), np.float32)

    def take(self, count: int) -> np.ndarray:
        """The next `count` rows."""
        found = [self._rest]
        while sum(map(len, found)) < count:
            found.append(next(self._blocks))
        rows = np.concatenate([block for block in found if len(block)] or [np.empty((0, 0), np.float32)])
        self._rest = rows[count:]
        return rows[:count]


class _Parts:
    """Rows that are computed part by part and kept on disk until all are there.

    A part's file is named after what went into it, so that it is only taken again for the same model and unchanged items.
    """

    def __init__(self, folder: Path, signature: str, items: Sequence[Sequence[Any]]) -> None:
        self.folder = folder
        self.slices = [slice(start, min(start + PART_ROWS, len(items))) for start in range(0, len(items), PART_ROWS)]
        self.names = [f"{hash_json([signature, [list(item) for item in items[part]]])[:24]}.npz" for part in self.slices]

    def fill(self, compute: Callable[[Sequence[slice]], Iterator[_Part]], what: str, progress: bool) -> _Part:
        """Computes the parts that are not there yet, and gives all of them.

        Args:
            compute: Gives the parts of these slices, one after the other.
            what: Name of the progress bar.
            progress: Whether to show it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        results = {
            n: self._read(name, part.stop - part.start) for n, (part, name) in enumerate(zip(self.slices, self.names, strict=True))
        }
        missing = [n for n, found in results.items() if found is None]
        computed = compute([self.slices[n] for n in missing]) if missing else iter(())
        with tqdm(total=self.slices[-1].stop if self.slices else 0, desc=what, disable=not progress) as bar:
            bar.update(sum(part.stop - part.start for n, part in enumerate(self.slices) if results[n] is not None))
            for n, found in zip(missing, computed, strict=True):
                with atomic_write(self.folder / self.names[n], "wb") as file:
                    listed = json.dumps([[image.id, str(image.path), image.reason] for image in found[2]])
                    np.savez(file, good=found[0], values=found[1], bad=np.array(listed))
                results[n] = found
                bar.update(self.slices[n].stop - self.slices[n].start)
        goods, values, bads = zip(*(found for found in results.values() if found is not None), strict=True)
        rows = [value for value in values if len(value)]
        joined = np.concatenate(rows) if rows else np.empty((0, 0), np.float32)
        return np.concatenate(goods), joined, [image for bad in bads for image in bad]

    def _read(self, name: str, rows: int) -> _Part | None:
        try:
            with np.load(self.folder / name, allow_pickle=False) as archive:
                good, values, bad = archive["good"], archive["values"], json.loads(str(archive["bad"]))
        except Exception:
            # Missing, or spoiled by whatever ended the former run: it is computed again.
            return None
        if good.shape != (rows,) or len(values) != int(good.sum()):
            return None
        return good, values, [BadImage(image_id, Path(path), reason) for image_id, path, reason in bad]

    def remove(self) -> None:
        """Deletes the parts, once the result is written."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _write_both(
    folder: Path,
    name: str,
    ids: Sequence[Any],
    values: np.ndarray,
    key: Key,
    formats: Sequence[str],
    dtype: str,
    progress: bool,
) -> list[Path]:
    if not len(ids):
        raise DataError(f"{folder}: no {key} is left to write.")
    return [
        write_feature_file(folder / f"{name}.{ending}", ids, values, key, dtype, progress)  # type: ignore[arg-type]
        for ending in dict.fromkeys(formats)
    ]


def _stamp(image_id: str, path: Path) -> list[Any]:
    try:
        found = path.stat()
    except OSError:
        return [image_id, str(path), None, None]
    return [image_id, str(path), found.st_size, found.st_mtime_ns]


def _rows_of(file: FeatureFile, ids: Sequence[Any]) -> np.ndarray:
    place = {name: row for row, name in enumerate(file.names)}
    absent = [str(entry) for entry in ids if str(entry) not in place]
    if absent:
        raise DataError(f"{file.path}: {len(absent)} of {len(ids)} ids of the dataset have no features: {', '.join(absent[:5])}.")
    return file.values[[place[str(entry)] for entry in ids]]


def _known_paths(dataset: ImageTextDataset, split: str) -> dict[str, Path]:
    """Files of those pictures that are there; features can be measured without any."""
    paths = {image_id: dataset.pictures.path(image_id) for image_id in dataset.image_truth(split)}
    return {image_id: path for image_id, path in paths.items() if path is not None}


def _described(files: Sequence[FeatureFile]) -> list[dict[str, Any]]:
    return [
        {"file": file.path.name, "sha256": hash_file(file.path) if file.path.is_file() else None, "rows": len(file), "dim": file.dim}
        for file in files
        if file.path is not None
    ]


def _split_column(spec: str) -> tuple[str, str | None]:
    """`FILE` or `FILE:COLUMN`; a file whose own name has a colon is taken as it is."""
    if Path(spec).exists():
        return spec, None
    path, _, column = spec.rpartition(":")
    return (path, column) if path else (spec, None)
