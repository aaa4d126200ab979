"""Verbs of attribute prediction and product matching: train, evaluate, predict, match, data fetch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tf_fashion.cli.options import (
    Option,
    add_backbone,
    add_batches,
    add_devices,
    add_files,
    add_optimizer,
    call,
    config_of,
    names,
    verb,
)
from tf_fashion.core.quiet import import_tensorflow_quietly


def _widths(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def add_attribute_data(add: Any, required: bool = True) -> None:
    """Where pictures and their labels come from."""
    add(
        "--data",
        required=required,
        metavar="DIR",
        help="folder in iMaterialist's layout (train.json, validation.json, label map), or a shop's folder with a CSV file of labels",
    )
    add("--images", metavar="DIR", help="folder of the pictures, if they are not in DATA")
    add("--dataset", default="auto", help="how DATA is read: imaterialist or attribute_catalogue; auto looks at its files")
    add(
        "--data-option",
        dest="data_options",
        action=Option,
        default={},
        metavar="NAME=VALUE",
        help="argument of the dataset's class (imaterialist: label_map, ...; attribute_catalogue: csv, columns, separator, val_share, "
        "...); repeatable",
    )


def add_attribute_arguments(parser: argparse.ArgumentParser) -> None:
    """All options of `train attributes`."""
    add = parser.add_argument
    add_attribute_data(add)
    add(
        "--out",
        required=True,
        metavar="DIR",
        help="folder for everything the run leaves; the same command continues an interrupted run",
    )
    group = parser.add_argument_group("model")
    add = group.add_argument
    add(
        "--preset",
        default="auto",
        help="where options that are not given come from: frozen (pretrained backbone, features cached; fast on a CPU), scratch (a "
        "small network without pretrained weights), finetune (pretrained, trained along; for GPUs), imaterialist and "
        "imaterialist_original (the published predictor, without and with its mistakes); `tf-fashion list presets` shows them; auto "
        "goes by --weights and --freeze-backbone",
    )
    add_backbone(group)
    add("--scaling", help="what is made of pixels before the backbone, in place of its own: imaterialist, torch, unit, ...")
    add("--hidden", type=_widths, metavar="N,N", help="widths of dense layers between features and logits ('' for none)")
    add("--feature-norm", action="store_true", default=None, help="batch normalisation of the features")
    add("--feature-dropout", type=float, help="share of image features dropped in training")
    add("--hidden-dropout", type=float, help="share of hidden units dropped in training")
    add(
        "--exclusive",
        type=names,
        metavar="A,B",
        help="groups of which a photo has one label at most, whose probabilities are a softmax: auto (default: those of the training "
        "data), none, or names",
    )
    add(
        "--correlation",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="correct logits by what labels say about each other",
    )
    add(
        "--correlation-option",
        dest="correlation_options",
        action=Option,
        metavar="NAME=VALUE",
        help="rank, initial_scale or l2 of that layer; repeatable",
    )
    add("--init-from", metavar="FILE", help="model.keras of another run with the same options: training begins with its weights")
    group = parser.add_argument_group("objective")
    add = group.add_argument
    add("--loss", help="of each label: bce (default), focal or asymmetric")
    add(
        "--loss-option",
        dest="loss_options",
        action=Option,
        metavar="NAME=VALUE",
        help="argument of the loss' class (focal: gamma, alpha; asymmetric: gamma_pos, gamma_neg, clip); repeatable",
    )
    add("--label-smoothing", type=float, help="share of each target that is spread over the other answers")
    add("--balance", help="weights against rare labels: none (default), class_balanced (effective numbers) or positive")
    add("--unlabelled", help="a photo without any label of a group: absent (default: has none of them) or unknown (no loss there)")
    add(
        "--start-at-prior",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="begin with the labels' frequencies as the last layer's bias",
    )
    group = parser.add_argument_group("training")
    add = group.add_argument
    add("--optimizer", help="adamw (default) or adam")
    add("--schedule", help="of the learning rate: cosine (default), constant, or step (a tenth after half the steps)")
    add_optimizer(group)
    add("--epochs", type=int)
    add("--batch-size", type=int, help="photos per step, over all replicas")
    add_batches(group)
    add_devices(group)
    group = parser.add_argument_group("evaluation and files")
    add = group.add_argument
    add("--thresholds", help="from probabilities to labels: label (default: one per label), group, or global; found by cross-fitting")
    add("--objective", help="what thresholds are chosen for: micro (default) or macro F1")
    add("--folds", type=int, help="parts of the evaluated split for cross-fitting (default 5)")
    add("--tta", help="test-time augmentation: none (default) or flip (mean of a photo and its mirror image)")
    add_files(group)


def attribute_config(args: argparse.Namespace) -> Any:
    """The `AttributeConfig` of parsed arguments."""
    from tf_fashion.training.attributes_config import AttributeConfig

    return config_of(AttributeConfig, args)


def add_train(train: Any) -> None:
    """`train attributes`."""
    parser = verb(
        train,
        "attributes",
        "photo -> labels",
        "Trains an attribute classifier: which labels of several groups (category, colour, pattern, ...) a photo shows.\n"
        "Writes to --out: model.keras, export/ (SavedModel), thresholds.json, metrics.json, labels.csv, history.csv, sheet.png,\n"
        "report.html\n\n"
        "  tf-fashion train attributes --data wardrobe-imaterialist --out runs/first\n"
        "  tf-fashion train attributes --data imat --images photos --weights imagenet --freeze-backbone --out runs/frozen\n"
        '  tf-fashion train attributes --data my_shop --data-option columns=["color","type"] --weights imagenet '
        "--freeze-backbone --out runs/shop",
    )
    add_attribute_arguments(parser)
    parser.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.attributes import train_attributes

    train_attributes(attribute_config(args))
    return 0


def add_fetch(data: Any) -> None:
    """`data fetch`."""
    fetch = verb(
        data,
        "fetch",
        "download the pictures of iMaterialist's lists",
        "Fetches the pictures that train.json, validation.json and test.json name and that are not there yet, several at a time and\n"
        "politely. Dead links do not stop it: failed.csv lists them (id, url, reason). The same command continues an interrupted\n"
        "download. Exit code 1 if a picture is still missing.\n\n"
        "  tf-fashion data fetch imat --images photos --split validation\n"
        "  tf-fashion data fetch imat/validation.json --images photos/validation --limit 500",
    )
    add = fetch.add_argument
    add("source", metavar="SRC", help="folder in iMaterialist's layout, or one of its JSON files")
    add("--images", metavar="DIR", help="where the pictures go (default: beside the lists, a folder for each)")
    add("--split", dest="splits", type=names, metavar="A,B", help="only these splits of a folder: train, val, test")
    add("--limit", type=int, metavar="N", help="only so many from the beginning of each list")
    add("--ratio", type=float, metavar="SHARE", help="only this share of each list, from its beginning")
    add("--retry-failed", action="store_true", help="ask again for what is listed as failed")
    add("--verify", action="store_true", help="decode the pictures that are there, and fetch damaged ones again")
    add("--workers", type=int, default=12, metavar="N", help="pictures fetched at a time")
    add("--per-host", type=int, default=8, metavar="N", help="pictures fetched at a time from one host")
    add("--delay", type=float, default=0.05, metavar="SECONDS", help="between two requests to one host")
    add("--retries", type=int, default=3, metavar="N", help="further tries after answers like 500 and 429")
    add("--quiet", dest="progress", action="store_false", help="no progress on the terminal")
    fetch.set_defaults(run=_fetch)


def _add_decisions(add: Any) -> None:
    """When a label is given to a photo."""
    add("--thresholds", metavar="FILE", help="thresholds to use (default: thresholds.json beside the model; without one 0.5)")
    add("--threshold", type=float, metavar="P", help="one probability for all labels, in place of a file")


def _add_scoring(add: Any) -> None:
    """How photos are run through a model."""
    add("--batch-size", type=int, default=32, metavar="N", help="photos at a time")
    add("--skip-bad-images", action="store_true", help="leave out unusable pictures (bad_images.csv lists them)")
    add("--quiet", dest="progress", action="store_false", help="no progress on the terminal")


def add_predict(predict: Any) -> None:
    """`predict attributes`."""
    parser = verb(
        predict,
        "attributes",
        "the labels of photos",
        "Prints the labels of a few photos with their probabilities, and with --out writes those of many, group by group:\n"
        "  attributes.csv       a line for each photo: id, file, and for each group its labels (A|B) and their probabilities\n"
        "  attributes_long.csv  a line for each label: id, file, group, rank, label, label_id, probability, decided\n"
        "  attributes.json      the same as one object\n"
        "  report.html          the photos with their labels, in pages of 100\n"
        "  scores.npz           scores and embeddings, which `match` reads\n"
        "The same command continues an interrupted one; bad pictures are listed at the end, and what was computed is kept until they\n"
        "are repaired.\n\n"
        "  tf-fashion predict attributes dress.jpg shoe.jpg --model runs/a/model.keras --top 3\n"
        "  tf-fashion predict attributes photos --model runs/a/model.keras --out tags\n"
        "  tf-fashion predict attributes shop.csv --images photos --model runs/a/model.keras --groups color,category --out tags",
    )
    add = parser.add_argument
    add("photos", nargs="+", metavar="PHOTOS", help="files, folders with all below them, or the CSV file of a catalogue")
    add("--model", required=True, metavar="FILE", help="model.keras of `train attributes`")
    add("--images", metavar="DIR", help="folder of the pictures of a CSV file, if they are not beside it")
    add("--out", metavar="DIR", help="folder for the files")
    add("--format", dest="formats", type=names, metavar="A,B", help="which files: csv, json, html (default: all)")
    add("--groups", type=names, metavar="A,B", help="only these groups of labels (default: all)")
    add("--top", type=int, default=0, metavar="K", help="tell the K best labels of each group, also those that are not likely enough")
    _add_decisions(add)
    add("--tta", default="none", help="test-time augmentation: none, or flip (mean of a photo and its mirror image)")
    add("--report-photos", dest="shown", type=int, default=1000, metavar="N", help="photos that report.html shows, from the first on")
    add("--explain", metavar="DIR", help="also draw where in each photo its labels were seen (Grad-CAM), as DIR/ID.png")
    add("--explain-photos", dest="explained", type=int, default=20, metavar="N", help="photos that are explained, from the first on")
    _add_scoring(add)
    parser.set_defaults(run=_predict)


def add_match(verbs: Any) -> None:
    """`match`."""
    parser = verb(
        verbs,
        "match",
        "find the same or similar products by their attributes",
        "Finds the catalogue's photos that are nearest to the given ones, by the scores of their attributes, by the embedding, or by\n"
        "both, and only among those that pass the filters. --gallery is scored first, into --store if that is given: the same command\n"
        "continues an interrupted one, and later ones only score new photos.\n\n"
        "  tf-fashion match coat.jpg --model runs/a/model.keras --gallery photos --store shop.npz --sheet found.png\n"
        "  tf-fashion match wanted --model runs/a/model.keras --store tags --by mix --only gender=Female --only color=Black,Gray \\\n"
        "    --not sleeve=Sleeveless --top 8 --csv found.csv\n"
        "  tf-fashion match --ids a17,b3 --store tags --by embedding --sheet found.png",
    )
    add = parser.add_argument
    add("photos", nargs="*", metavar="PHOTOS", help="photos to look for: files and folders")
    add("--ids", type=names, metavar="A,B", help="in place of photos: pictures of the catalogue")
    add("--model", metavar="FILE", help="model.keras of `train attributes` (not needed with --ids and --store)")
    group = parser.add_argument_group("catalogue")
    add = group.add_argument
    add("--gallery", metavar="PATH", help="folder of photos, or the CSV file of a catalogue")
    add("--store", metavar="FILE", help="scores (.npz), or the folder that `predict attributes` wrote; of --gallery they are kept here")
    add("--images", metavar="DIR", help="folder of the pictures, where CSV file or scores do not say it")
    add(
        "--only",
        action="append",
        metavar="GROUP=LABEL",
        help="find only pictures with this label, or one of A,B; repeatable",
    )
    add("--not", dest="without", action="append", metavar="GROUP=LABEL", help="no pictures with this label; repeatable")
    add("--catalogue", metavar="CSV", help="its columns count in --only and --not before what the model says")
    add("--separator", default="|", help="between several values in a cell of that file")
    _add_decisions(add)
    group = parser.add_argument_group("distance")
    add = group.add_argument
    add("--by", default="attributes", help="attributes, embedding, or mix")
    add("--metric", help="of attributes: euclidean_logits (default), euclidean_prob, cosine (default in a mix)")
    add("--weight", type=float, metavar="SHARE", help="of the attributes in a mix, 0 to 1 (default 0.5)")
    add(
        "--group-weight",
        dest="group_weights",
        action=Option,
        metavar="GROUP=N",
        help="count a group N times (color=2), or not at all (color=0); repeatable",
    )
    group = parser.add_argument_group("results")
    add = group.add_argument
    add("--top", type=int, default=4, metavar="K", help="how many to find for each photo")
    add("--include-self", action="store_true", help="a picture of the catalogue may find itself")
    add("--sheet", metavar="FILE", help="write a picture of the queries and what was found (.png)")
    add("--csv", metavar="FILE", help="write ids, distances, files and labels of all matches")
    add("--json", metavar="FILE", help="the same, and which groups agree")
    add("--tta", help="test-time augmentation: none or flip (default: that of the scores)")
    _add_scoring(add)
    parser.set_defaults(run=_match)


def add_evaluate(evaluate: Any) -> None:
    """`evaluate attributes`."""
    parser = verb(
        evaluate,
        "attributes",
        "photo -> labels",
        "Measures an attribute classifier on labelled photos and writes the JSON that training writes: F1, mAP and accuracies with\n"
        "0.5 and with cross-fitted thresholds, calibration, and the quality of matching. Thresholds beside the model are measured\n"
        "too, unless they were fitted on these very photos.\n\n"
        "  tf-fashion evaluate attributes --model runs/a/model.keras --data imat --images photos --out runs/a/validation.json\n"
        "  tf-fashion evaluate attributes --model runs/a/model.keras --data other_shop --split test --match-task category \\\n"
        "    --out other.json --report other",
    )
    add = parser.add_argument
    add("--model", required=True, metavar="FILE", help="model.keras of `train attributes`")
    add_attribute_data(add)
    add("--split", help="split to measure on (default: val, or test where there is no val)")
    add("--out", required=True, metavar="FILE", help="where to write the JSON")
    add("--fit", dest="kind", default="label", help="thresholds to cross-fit: label (one per label), group, or global")
    add("--objective", default="micro", help="what they are chosen for: micro or macro F1")
    add("--folds", type=int, default=5, help="parts of the split for cross-fitting")
    add("--thresholds", metavar="FILE", help="given thresholds to measure too (default: thresholds.json beside the model)")
    add("--tta", default="none", help="test-time augmentation: none or flip")
    add("--match-task", metavar="GROUP", help="the group whose label has to be the same in matching (default: category)")
    add("--name", help="the result's name in tables (default: the file's)")
    add("--report", metavar="DIR", help="also write labels.csv, calibration.svg and report.html there")
    _add_scoring(add)
    parser.set_defaults(run=_evaluate)


def _fetch(args: argparse.Namespace) -> int:
    from tf_fashion.datasets.fetch import download_images
    from tf_fashion.datasets.imaterialist import Imaterialist

    source = Imaterialist(args.source) if Path(args.source).is_dir() else args.source
    report = call(download_images, args, source=source, folder=args.images)
    print(report.format())
    return 0 if report.ok else 1


def _predict(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.attribute_commands import predict_attributes

    print(call(predict_attributes, args))
    return 0


def _match(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.match_commands import match_photos

    print(call(match_photos, args))
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.attribute_commands import evaluate_attribute_model

    call(evaluate_attribute_model, args, dataset_name=args.dataset)
    return 0
