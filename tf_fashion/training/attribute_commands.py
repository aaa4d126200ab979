"""What the command line does with attribute classifiers: labels of photos, and quality on labelled data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import hash_file, make_out_folder, write_json
from tf_fashion.datasets.attributes import AttributeDataset, open_attributes
from tf_fashion.datasets.imaterialist import Imaterialist
from tf_fashion.datasets.labels import LabelMap
from tf_fashion.encoders.image import ImageEncoder
from tf_fashion.inputs.audit import BadImage
from tf_fashion.inputs.feature_cache import FeatureCache
from tf_fashion.inputs.images import load_image
from tf_fashion.models.attributes import AttributeClassifier
from tf_fashion.reports.attributes_html import TaggedPhoto
from tf_fashion.reports.saliency import SaliencyRow, grad_cam, saliency_sheet
from tf_fashion.reports.tags import FORMATS, check_formats, counts_table, photos_table, tagged, write_tables
from tf_fashion.reports.tags_html import FIRST_PAGE, write_tag_pages
from tf_fashion.tagging.metrics import evaluate_attributes
from tf_fashion.tagging.thresholds import KINDS, OBJECTIVES, Thresholds
from tf_fashion.training.attribute_evaluation import (
    FITTED,
    PLAIN,
    AttributeEmbedder,
    AttributeEvaluation,
    attribute_protocol,
    limits,
    matching_quality,
    measure,
    summarise_attributes,
)
from tf_fashion.training.attribute_results import attributes_table, write_attribute_results
from tf_fashion.training.attribute_scores import PhotoList, PhotoScorer, find_photos
from tf_fashion.training.bad_images import refuse_or_report
from tf_fashion.training.runs import versions

THRESHOLDS_FILE = "thresholds.json"
SCORES_FILE = "scores.npz"
GIVEN = "thresholds of training"
# So few photos are printed one by one.
_FEW = 10
# Labels of a photo that are explained at most.
_EXPLAINED = 6


def decision_rule(
    model_path: str | Path | None,
    label_map: LabelMap,
    exclusive: Sequence[str],
    thresholds: str | None = None,
    threshold: float | None = None,
) -> Thresholds:
    """When a label is given to a photo.

    Args:
        model_path: The model, beside which training has written `thresholds.json`; None for none.
        label_map: Its labels.
        exclusive: Its exclusive groups.
        thresholds: A file to read in place of that one.
        threshold: One number for all labels, in place of a file.

    Returns:
        Thresholds; without any file 0.5, and the likeliest label of exclusive groups.

    Raises:
        UsageError: a file and a number, or a number outside 0..1.
        DataError: a file that is missing, broken, or for other labels.
    """
    if thresholds is not None and threshold is not None:
        raise UsageError("Give --thresholds FILE or --threshold P, not both.")
    if threshold is not None:
        if not 0 <= threshold <= 1:
            raise UsageError(f"--threshold: expected a probability from 0 to 1, found {threshold}.")
        return Thresholds.constant(label_map, threshold, exclusive)
    beside = None if model_path is None else Path(model_path).with_name(THRESHOLDS_FILE)
    if thresholds is None and (beside is None or not beside.is_file()):
        return Thresholds.constant(label_map, 0.5, exclusive)
    return Thresholds.read(thresholds or str(beside), label_map)


def predict_attributes(
    photos: Sequence[str],
    model: str,
    out: str | None = None,
    images: str | None = None,
    groups: Sequence[str] | None = None,
    top: int = 0,
    thresholds: str | None = None,
    threshold: float | None = None,
    tta: str = "none",
    batch_size: int = 32,
    formats: Sequence[str] | None = None,
    shown: int = 1000,
    explain: str | None = None,
    explained: int = 20,
    skip_bad_images: bool = False,
    progress: bool = True,
) -> str:
    """Labels of photos with probabilities; see `tf-fashion predict attributes --help`.

    With `out` the scores of photos are kept in parts until all are there, so that the same command continues after an interruption, or
    after bad pictures have been repaired; and scores that are there already are not computed again for other options.

    Returns:
        A table for the terminal: all labels of a few photos, or how often each label was given to many.

    Raises:
        UsageError: an option that cannot be used, no such file, an unknown group.
        DataError: pictures that cannot be used (listed in `bad_images.csv`), another kind of model, thresholds of other labels.
    """
    formats = FORMATS if formats is None else formats
    check_formats(formats)
    for name, value in (("--top", top), ("--report-photos", shown), ("--explain-photos", explained)):
        if value < 0:
            raise UsageError(f"{name}: expected at least 0, found {value}.")
    scorer = PhotoScorer(model, tta, batch_size, progress)
    label_map, exclusive = scorer.model.label_map, scorer.model.exclusive
    chosen = chosen_groups(label_map, groups)
    rule = decision_rule(model, label_map, exclusive, thresholds, threshold)
    if explain is not None:
        require_maps(scorer.model)
    found = find_photos(photos, images)
    folder = None if out is None else make_out_folder(out)
    if folder is None:
        store, left_out = scorer.scores(found, Path.cwd() / "bad_images.csv", skip_bad_images)
    else:
        store, left_out = scorer.store(found, folder / SCORES_FILE, folder / "bad_images.csv", skip_bad_images)
    few = len(store) <= _FEW
    parts = []
    if few or folder is None:
        parts.append(photos_table(list(tagged(store, rule, found.root, groups=chosen, top=top))))
    if folder is not None:
        facts = {
            "model": {"file": Path(model).name, "sha256": hash_file(model)},
            "rule": rule.describe(),
            "tta": tta,
            "pictures": str(found.root),
            "photos_left_out": left_out,
            "versions": versions(),
        }
        said = tagged(store, rule, found.root, groups=chosen, top=top)
        counts = write_tables(folder, said, found.root, chosen, formats, facts)
        written = [name for kind, names in _FILES.items() if kind in formats for name in names]
        if "html" in formats:
            count = min(shown, len(store))
            pages = write_tag_pages(
                folder,
                tagged(store, rule, found.root, groups=chosen, top=top, most=count),
                counts,
                count,
                summary=f"Labels by {Path(model).name}: {rule.describe()}.",
                facts=facts,
                progress=progress,
            )
            written.append(FIRST_PAGE if len(pages) == 1 else f"{FIRST_PAGE} and {len(pages) - 1} more pages")
        if not few:
            parts.append(counts_table(counts))
        without = f" ({left_out} left out, see bad_images.csv)" if left_out else ""
        parts.append(f"{len(store)} photos{without}. Written into {folder}: {', '.join([*written, SCORES_FILE])}")
    if explain is not None:
        said = tagged(store, rule, found.root, groups=chosen, top=1, most=explained)
        count = explain_photos(scorer.model, said, make_out_folder(explain), progress)
        rest = f" (the first of {len(store)}; --explain-photos says how many)" if count < len(store) else ""
        parts.append(f"Where labels were seen: {count} pictures in {explain}{rest}")
    return "\n\n".join(parts)


def require_maps(model: AttributeClassifier) -> None:
    """Raises `UsageError` for a model whose labels cannot be traced back to places of a photo."""
    if not isinstance(model.image_encoder, ImageEncoder):
        raise UsageError("--explain needs the feature maps of the image network, and this model's (a SavedModel) shows none.")


def explain_photos(model: AttributeClassifier, photos: Iterable[TaggedPhoto], folder: Path, progress: bool = True) -> int:
    """Draws where in each photo its labels were seen (Grad-CAM), as `ID.png`.

    Args:
        model: The model.
        photos: Photos with their tags; of each the given labels are drawn, the likeliest first, or where none is given the likeliest
            of all.
        folder: Where the pictures go.
        progress: Whether to show a progress bar.

    Returns:
        How many were drawn.
    """
    count = 0
    for photo in tqdm(photos, desc="explaining", unit="image", disable=not progress):
        if photo.path is None:
            continue
        tags = sorted((tag for tags in photo.tags.values() for tag in tags), key=lambda tag: (not tag.decided, -tag.probability))
        given = [tag for tag in tags if tag.decided][:_EXPLAINED] or tags[:1]
        pixels = load_image(photo.path, model.image_encoder.image_spec).numpy()
        places = np.array([[model.label_map.position(tag.label.id) for tag in given]])
        maps = grad_cam(model.image_encoder, model.logits_of, pixels[None], places)[0]
        names = [f"{tag.label.task}: {tag.label.name}" for tag in given]
        row = SaliencyRow(pixels, names, maps, [tag.probability for tag in given], name=photo.image_id)
        saliency_sheet(folder / f"{photo.image_id}.png", [row], title="Where labels were seen")
        count += 1
    return count


_FILES = {"csv": ("attributes.csv", "attributes_long.csv"), "json": ("attributes.json",)}


def chosen_groups(label_map: LabelMap, groups: Sequence[str] | None) -> list[str]:
    """The groups that are told about, in the order of the label map.

    Raises:
        UsageError: one that there is not.
    """
    unknown = [name for name in groups or () if name not in label_map.tasks]
    if unknown:
        raise UsageError(f"--groups: no group {unknown[0]!r}. Groups: {', '.join(label_map.tasks)}.")
    return [name for name in label_map.tasks if not groups or name in groups]


def evaluate_attribute_model(
    model: str,
    data: str,
    out: str,
    images: str | None = None,
    dataset_name: str = "auto",
    data_options: Mapping[str, Any] | None = None,
    split: str | None = None,
    kind: str = "label",
    objective: str = "micro",
    folds: int = 5,
    thresholds: str | None = None,
    tta: str = "none",
    match_task: str | None = None,
    report: str | None = None,
    name: str | None = None,
    batch_size: int = 32,
    skip_bad_images: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Measures a model on a split, prints the tables and writes the JSON; see `tf-fashion evaluate attributes --help`.

    Returns:
        What training's `metrics.json` has. Where the model has thresholds that were not fitted on this very split, `rules` has them
        too, and `run` says where they come from.

    Raises:
        UsageError: an option that cannot be used, no such file, split or group.
        DataError: pictures that cannot be used, labels that the model does not have, or labels that are not known.
    """
    target = Path(out)
    make_out_folder(target.parent)
    if target.is_dir():
        raise UsageError(f"--out {out}: expected the name of a JSON file, found a folder.")
    for option, value, known in (("--fit", kind, KINDS), ("--objective", objective, OBJECTIVES)):
        if value not in known:
            raise UsageError(f"{option}: expected {' or '.join(known)}; found {value!r}.")
    if folds < 2:
        raise UsageError(f"--folds: expected at least 2, found {folds}.")
    scorer = PhotoScorer(model, tta, batch_size, progress)
    classifier = scorer.model
    if match_task is not None and match_task not in classifier.label_map.tasks:
        raise UsageError(f"--match-task: no group {match_task!r}. Groups: {', '.join(classifier.label_map.tasks)}.")
    dataset = labelled_data(classifier, data, images, dataset_name, data_options)
    split = split or dataset.default_split
    if split is None:
        raise UsageError(f"{data}: no split with known labels beside 'train'. Say which with --split.")
    rule = decision_rule(model, classifier.label_map, classifier.exclusive, thresholds)
    # Fails before the photos are looked at where the split or its labels are not there.
    dataset.targets(split)
    dataset, paths, logits, embeddings = _scored(scorer, dataset, split, target.with_name("bad_images.csv"), skip_bad_images)
    ids, targets = dataset.targets(split)
    evaluation = measure(classifier, ids, targets, logits, embeddings, kind, objective, folds)
    protocol = attribute_protocol(dataset, split, evaluation, tta)
    run: dict[str, Any] = {
        "name": name or Path(model).name,
        "model": {"file": Path(model).name, "sha256": hash_file(model)},
        "versions": versions(),
        "config": {"split": split, "thresholds": kind, "objective": objective, "folds": evaluation.folds, "tta": tta},
        "seed": None,
        "data_hash": dataset.data_hash([split]),
    }
    metrics = summarise_attributes(evaluation, protocol, run)
    if match_task is not None:
        metrics["matching"] = matching_quality(evaluation, protocol, match_task)
    _add_given_rule(metrics, evaluation, rule)
    write_json(target, metrics)
    if report:
        title = f"Attributes on {dataset.name}"
        write_attribute_results(make_out_folder(report), metrics, evaluation, paths, title, f"Model {run['name']}, {split}.")
    if progress:
        print(attributes_table(metrics))
    return metrics


def labelled_data(
    model: AttributeClassifier, data: str, images: str | None, dataset_name: str, data_options: Mapping[str, Any] | None
) -> AttributeDataset:
    """A dataset with the labels of a model; a catalogue's columns are read as the groups of the same names.

    Raises:
        UsageError: as `open_attributes`.
        DataError: its label map is another one.
    """
    options = dict(data_options or {})
    listed = dataset_name == "auto" and Path(data).is_dir() and Imaterialist.matches(Path(data))
    if "label_map" not in options and dataset_name in ("auto", "attribute_catalogue") and not listed:
        options["label_map"] = model.label_map
    dataset = open_attributes(data, images, dataset_name, **(options or {}))
    if dataset.label_map != model.label_map:
        raise DataError(
            f"{data}: its {len(dataset.label_map)} labels ({', '.join(dataset.label_map.tasks)}) are not the "
            f"{len(model.label_map)} of the model ({', '.join(model.label_map.tasks)}). Measure a model on labels that it has learned."
        )
    return dataset


def _scored(
    scorer: PhotoScorer, dataset: AttributeDataset, split: str, bad_list: Path, skip: bool
) -> tuple[AttributeDataset, dict[str, Path], np.ndarray, np.ndarray]:
    """The dataset without unusable pictures, files, and logits and embeddings of a split in the order of its records."""
    missing = dataset.missing_images(split)
    gone = [BadImage(image_id, dataset.images_root / f"{image_id}.jpg", "missing") for image_id in missing]
    absent = set(missing)
    paths = dataset.image_paths(image_id for image_id in dataset.image_ids(split) if image_id not in absent)
    encoder = scorer.model.image_encoder
    if scorer.tta == "none" and FeatureCache.existing(encoder) is not None:
        embedder = AttributeEmbedder(scorer.model, scorer.batch_size)
        table, unreadable = embedder.features_or_problems(paths, scorer.progress)
        refuse_or_report([*gone, *unreadable], bad_list, skip)
        logits, embeddings = embedder.features(table.values)
        ids = table.ids
    else:
        store, _ = scorer.scores(PhotoList.of(paths, gone), bad_list, skip)
        logits, embeddings, ids = store.scores, np.asarray(store.embeddings), list(store.image_ids)
    kept = set(ids)
    left_out = [image_id for image_id in dataset.image_ids(split) if image_id not in kept]
    if left_out:
        dataset = dataset.without_images(left_out)
    place = {image_id: row for row, image_id in enumerate(ids)}
    rows = [place[image_id] for image_id in dataset.targets(split)[0]]
    return dataset, {image_id: Path(paths[image_id]) for image_id in kept}, logits[rows], embeddings[rows]


def _add_given_rule(metrics: dict[str, Any], evaluation: AttributeEvaluation, rule: Thresholds) -> None:
    """Puts the numbers of the model's own thresholds between the two rules, unless they say the same or were fitted on this split."""
    if rule.values == evaluation.plain.values or rule.values == evaluation.fitted.values:
        return
    label_map = evaluation.model.label_map
    decisions = rule.decide(evaluation.probabilities, label_map)
    given = evaluate_attributes(evaluation.probabilities, evaluation.targets, decisions, label_map, thresholds=limits(rule))
    metrics["rules"] = {PLAIN: metrics["rules"][PLAIN], GIVEN: given, FITTED: metrics["rules"][FITTED]}
    metrics["run"]["thresholds"] = {"rule": rule.describe(), "fitted": dict(rule.fitted)}
