"""Verbs of street-to-shop retrieval: train, adapt, evaluate, cluster."""

from __future__ import annotations

import argparse
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


def _add_data(add: Any) -> None:
    """Where lists and photos are."""
    add(
        "--data",
        required=True,
        metavar="DIR",
        help="folder of the lists in UDMA's layout: train_cluster/{df,s2s}_{consumer,shop}.txt (path product category [name]), "
        "test/consumer_df.txt and shop_df.txt (path,id), test/test_{consumer,shop}_single*street2shop.json, df_train/...",
    )
    add("--images", metavar="DIR", help="folder of the photos, if they are not in DATA, DATA/images or beside DATA")


def _add_tests(add: Any) -> None:
    """What is measured, and how."""
    add(
        "--test",
        type=names,
        metavar="A,B",
        help="test lists to measure: df, s2s (default: all that are there; the first is the main one)",
    )
    add(
        "--protocol",
        help="deepfashion-c2s (default for df: all shop photos), street2shop (default for s2s: within categories), cross-domain, "
        "deepfashion-c2s-original; `tf-fashion list protocols` explains them",
    )
    add("--ap", help="average precision in place of the protocol's: trapezoid (the published programs'), or standard")


def _add_loss(add: Any, note: str) -> None:
    add("--loss", help=f"matching loss{note}; `tf-fashion list losses` names them")
    add(
        "--loss-option",
        dest="loss_options",
        action=Option,
        metavar="NAME=VALUE",
        help="argument of the loss' class (mined_triplet: margin, miner, ...; supervised_contrastive: temperature); repeatable",
    )


def add_street_arguments(parser: argparse.ArgumentParser) -> None:
    """All options of `train street_to_shop`."""
    add = parser.add_argument
    _add_data(add)
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
        "small network without pretrained weights), finetune (pretrained, trained along; for GPUs), df_bl and df_bl_original (UDMA's "
        "ResNet-101 with GeM; for GPUs); `tf-fashion list presets` shows them; auto goes by --weights and --freeze-backbone",
    )
    add_backbone(group)
    add("--batch-norm", help="statistics of batch normalisation: auto (default: frozen with --weights), frozen, or train")
    add("--dim", type=int, help="width of the embedding (0: that of the features)")
    add("--start", help="linear layer's start: torch (random), identity, or components (principal components; frozen backbones)")
    add(
        "--standardize",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="bring each feature to mean 0 and one spread (frozen backbones)",
    )
    add("--norm-features", action="store_true", default=None, help="scale feature vectors to length one before the linear layer")
    add("--feature-dropout", type=float, help="share of image features dropped in training")
    add(
        "--init-from",
        metavar="FILE",
        help="model.keras of another run with the same options, or of `weights convert --to dirtorch`: begin with its weights",
    )
    group = parser.add_argument_group("objective")
    add = group.add_argument
    _add_loss(add, " (mined_triplet: pytorch-metric-learning's batch-hard triplets; supervised_contrastive)")
    add(
        "--sampler",
        help="pairs (one pair of photos of each product) or products (all kinds of pairs of many products; frozen backbones)",
    )
    add("--combination", help="pairs: all (consumer and shop, two consumer, two shop photos) or consumer_shop")
    add("--draws", type=int, help="how often each product gives its pairs, per epoch (pairs) or batch (products); 0: by their number")
    add("--statuses", type=names, default=("train", "val"), metavar="A,B", help="with DeepFashion's pairs: splits to train on")
    group = parser.add_argument_group("training")
    add = group.add_argument
    add("--optimizer", help="adamw (default) or adam")
    add("--schedule", help="of the learning rate: cosine (default), constant, step, or thirds (a tenth after each third of the epochs)")
    add_optimizer(group)
    add("--epochs", type=int)
    add("--batch-size", type=int, help="products per step")
    add_batches(group)
    add_devices(group)
    group = parser.add_argument_group("evaluation and files")
    _add_tests(group.add_argument)
    add_files(group)


def street_config(args: argparse.Namespace) -> Any:
    """The `StreetConfig` of parsed arguments."""
    from tf_fashion.training.street_config import StreetConfig

    return config_of(StreetConfig, args)


def add_adapt_arguments(parser: argparse.ArgumentParser) -> None:
    """All options of `adapt`."""
    add = parser.add_argument
    add("--model", required=True, metavar="FILE", help="model.keras of `train street_to_shop`")
    _add_data(add)
    add(
        "--features",
        metavar="DIR",
        help="vectors extracted before (X-1) in the files of the published programs, in place of photos: "
        "DIR/**/{DeepFashion,Street2Shop}/**/train_{Consumer,Shop}_X-1_*.h5 and {Query,Gallery}_X-1_*.{mat,h5}",
    )
    add(
        "--out",
        required=True,
        metavar="DIR",
        help="folder for everything the run leaves; the same command continues an interrupted run",
    )
    add(
        "--preset",
        default="short",
        help="short (a few hundred steps; default), udma (45,000 steps in batches of 12 categories), udma_original (with its mistakes)",
    )
    group = parser.add_argument_group("which photos of the target a product gets")
    add = group.add_argument
    add(
        "--weighting",
        help="ws5 (default; published), ws6, ws7, ws8, soft (weights by similarity), unweighted (all of the product's clusters), none "
        "(no photo of the target: what the others are to be compared with). ws6, ws7 and ws8 use the target's product ids",
    )
    add(
        "--weighting-option",
        dest="weighting_options",
        action=Option,
        metavar="NAME=VALUE",
        help="soft: temperature, least_weight; repeatable",
    )
    add(
        "--alignment",
        help="which categories are clustered together: single (default: all; nothing of the target's labels is used), by_name, "
        "deepfashion (UDMA's table for DeepFashion and Street2Shop), or a JSON file "
        '{"groups": [{"name": ..., "target": [numbers], "source": [numbers]}, ...]}',
    )
    add("--partition", type=int, help="which partition of FINCH, from 0, the finest (default)")
    add("--neighbours", help="exact (default) or faiss (approximate; for a million photos)")
    add(
        "--matches",
        metavar="CSV",
        help="matches in place of computed ones, as the original's programs write them (L12_WS5_WS6_0.csv, ...)",
    )
    group = parser.add_argument_group("training")
    add = group.add_argument
    _add_loss(add, ": mined_triplet or supervised_contrastive")
    add(
        "--merge",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="negatives from all products (default with short) and not from the own category alone (as published)",
    )
    add("--categories-per-batch", type=int, metavar="N", help="with --no-merge: categories per step")
    add("--batch-size", type=int, help="products per category and step")
    add(
        "--draws",
        type=int,
        help="how often each product gives its pairs in a step; 0 (default with short): 3 times where there are few",
    )
    add("--optimizer", help="adamw (default) or adam")
    add("--schedule", help="of the learning rate: cosine, constant, step, or thirds (a tenth after each third of the epochs)")
    add_optimizer(group)
    add("--epochs", type=int)
    add_batches(group)
    add_devices(group)
    group = parser.add_argument_group("evaluation and files")
    _add_tests(group.add_argument)
    add_files(group)


def adapt_config(args: argparse.Namespace) -> Any:
    """The `AdaptConfig` of parsed arguments."""
    from tf_fashion.training.street_config import AdaptConfig

    return config_of(AdaptConfig, args)


def add_train(train: Any) -> None:
    """`train street_to_shop`."""
    parser = verb(
        train,
        "street_to_shop",
        "consumer photo -> the shop's product",
        "Trains an embedding by which a photo from the street finds its product among shop photos (the first stage of UDMA, DF-BL).\n"
        "Writes to --out: model.keras, export/ (SavedModel), metrics.json, history.csv, sheet.png, report.html\n\n"
        "  tf-fashion train street_to_shop --data wardrobe-street_to_shop --out runs/street\n"
        "  tf-fashion train street_to_shop --data lists --images photos --weights imagenet --freeze-backbone --out runs/frozen\n"
        "  tf-fashion train street_to_shop --data lists --images photos --preset df_bl --init-from tl_gem.keras --out runs/df_bl",
    )
    add_street_arguments(parser)
    parser.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.street import train_street

    train_street(street_config(args))
    return 0


def add_adapt(verbs: Any) -> None:
    """`adapt`."""
    parser = verb(
        verbs,
        "adapt",
        "fit a street-to-shop model to another shop, without labels (UDMA)",
        "Clusters the shop photos of the labelled source (df) and of the target (s2s) with FINCH, gives the source's products those\n"
        "photos of the target that share their clusters, and trains the model's linear layer further with them (UDMA-MLP).\n"
        "Writes to --out: what training writes, and clusters.npz, clusters.json, pseudo_labels.npz, the matches as the original\n"
        "writes them, clusters.png, cluster_tree.png, weights.svg\n\n"
        "  tf-fashion adapt --model runs/street/model.keras --data wardrobe-street_to_shop --out runs/udma\n"
        "  tf-fashion adapt --model runs/street/model.keras --data lists --images photos --weighting none --out runs/control\n"
        "  tf-fashion adapt --model runs/df_bl/model.keras --data lists --images photos --preset udma --out runs/udma",
    )
    add_adapt_arguments(parser)
    parser.set_defaults(run=_adapt)


def _adapt(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.adaptation import adapt

    adapt(adapt_config(args))
    return 0


def add_evaluate(evaluate: Any) -> None:
    """`evaluate street_to_shop`."""
    parser = verb(
        evaluate,
        "street_to_shop",
        "consumer photo -> the shop's product",
        "Measures a model on test lists and writes the JSON that training writes: mAP and R@K overall and per category.\n\n"
        "  tf-fashion evaluate street_to_shop --model runs/street/model.keras --data lists --images photos --out df.json --test df\n"
        "  tf-fashion evaluate street_to_shop --model runs/udma/model.keras --data lists --images photos --ap standard --out s2s.json",
    )
    add = parser.add_argument
    add("--model", required=True, metavar="FILE", help="model.keras of `train street_to_shop` or `adapt`")
    _add_data(add)
    _add_tests(add)
    add("--out", required=True, metavar="FILE", help="where to write the JSON")
    add("--name", help="the result's name in tables (default: the file's)")
    add("--report", metavar="DIR", help="also write sheet.png and report.html there")
    add("--original-lines", action="store_true", help="also print the lines that the published MATLAB scripts print")
    add("--batch-size", type=int, default=32, metavar="N", help="photos at a time")
    add("--skip-bad-images", action="store_true", help="leave out unusable photos (bad_images.csv lists them)")
    add("--quiet", dest="progress", action="store_false", help="no progress on the terminal")
    parser.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.street_commands import evaluate_street

    print(call(evaluate_street, args, model_path=args.model))
    return 0


def add_cluster(verbs: Any) -> None:
    """`cluster`."""
    parser = verb(
        verbs,
        "cluster",
        "cluster embeddings with FINCH",
        "Clusters the rows of a matrix by first neighbours, without parameters: all partitions, from the finest to the coarsest.\n"
        "Reads .npy, the index that `embed` writes, .h5 and .mat; writes OUT.npz (labels, counts), with --picture a scatter plot.\n\n"
        "  tf-fashion cluster features.npy --out clusters.npz\n"
        "  tf-fashion cluster shop_index --clusters 40 --out clusters.npz --csv clusters.csv --picture clusters.png",
    )
    add = parser.add_argument
    add("features", metavar="FILE", help="matrix of embeddings, or the folder that `embed` wrote")
    add("--out", required=True, metavar="FILE", help="where to write labels int32 (rows, partitions) and counts (.npz)")
    add("--metric", default="cosine", help="distance: cosine, euclidean, cityblock, ...")
    add("--clusters", dest="required", type=int, metavar="N", help="also exactly so many clusters (the array `required`)")
    add(
        "--pruning",
        default="none",
        help="links longer than usual: none (default, the paper's), udma or binary (the original programs')",
    )
    add("--neighbours", default="exact", help="exact, or faiss (approximate, for a million rows: pip install 'tf-fashion[faiss]')")
    add("--csv", metavar="FILE", help="write the clusters as a table: row (or id) and a column per partition")
    add("--picture", metavar="FILE", help="draw the rows in two dimensions, coloured by cluster (.png or .svg)")
    add("--projection", default="pca", help="of the picture: pca or umap")
    add("--partition", type=int, help="of the picture (default: the finest with at most 12 clusters, or the coarsest)")
    add("--quiet", dest="progress", action="store_false", help="no progress on the terminal")
    parser.set_defaults(run=_cluster)


def _cluster(args: argparse.Namespace) -> int:
    from tf_fashion.training.cluster_command import cluster_file

    print(call(cluster_file, args))
    return 0


def add_compare(compare: Any) -> None:
    """`compare street_to_shop`."""
    parser = verb(
        compare,
        "street_to_shop",
        "results of street-to-shop retrieval side by side",
        "Prints one table per test list, a line for each result and for what it was compared with, the best last; several of one\n"
        "name (seeds) become mean ± deviation. Results of different protocols or lists are refused.\n\n"
        "  tf-fashion compare street_to_shop runs/udma/street/metrics.json runs/udma/adapted/metrics.json\n"
        "  tf-fashion compare street_to_shop runs/seed*/adapted/metrics.json --part dresses --out table.md",
    )
    add = parser.add_argument
    add("results", nargs="+", metavar="FILE", help="metrics.json of a run, or what `evaluate street_to_shop` wrote")
    add("--part", default="mean", help="mean (of all categories), selected, or the name of a category")
    add("--out", metavar="FILE", help="also write the tables there, as Markdown")
    parser.set_defaults(run=_compare)


def _compare(args: argparse.Namespace) -> int:
    from tf_fashion.reports.udma import compare_files

    print(call(compare_files, args))
    return 0
