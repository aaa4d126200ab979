"""Verbs of composed retrieval: train, tune, evaluate, scores, ensemble."""

from __future__ import annotations

import argparse
from typing import Any

from tf_fashion.cli.options import (
    Option,
    add_backbone,
    add_batches,
    add_data_arguments,
    add_devices,
    add_files,
    add_optimizer,
    call,
    config_of,
    numbers,
    verb,
)
from tf_fashion.core.quiet import import_tensorflow_quietly


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """All options of `train composed`."""
    add_data_arguments(parser)
    add = parser.add_argument
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
        help="where options that are not given come from: frozen (pretrained, features cached; fast on a CPU), finetune "
        "(pretrained, trained along; for GPUs), scratch (small network without pretrained weights); the settings of released systems: "
        "val_fashion_iq, val_shoes, val_fashion200k; fiq2020_tirg, _text_only, _match_tirg, _match_text_only (and _original with its "
        "mistakes); rtic; `tf-fashion list presets` shows them; auto chooses by --weights and --freeze-backbone",
    )
    add("--composer", help="how picture and sentence become a query (default tirg); `tf-fashion list composers` names them")
    for kind in ("composer", "text", "loss"):
        add(
            f"--{kind}-option",
            dest=f"{kind}_options",
            action=Option,
            metavar="NAME=VALUE",
            help=f"argument of the {kind}'s class, VALUE as JSON or plain text; repeatable",
        )
    add_backbone(group)
    add("--text-encoder", help="gru, lstm, lstm_gru, bigru, bilstm, swem")
    add("--dim", type=int, help="width of the embeddings")
    add("--word-dim", type=int, help="width of the word vectors")
    add("--text-units", type=int, help="width of recurrent text layers (default: DIM)")
    add(
        "--glove",
        action="append",
        default=[],
        metavar="FILE",
        help="GloVe text file (.txt, .gz) or .npz with initial word vectors; repeatable: the vectors of all files are put side by "
        "side, as wide as --word-dim together",
    )
    add(
        "--glove-missing",
        help="words that a file lacks: scaled_normal (default: zeros there, noise of GloVe's size where all lack it), zeros, or "
        "legacy_normal (N(0, 1) unless all have it)",
    )
    add(
        "--spelling",
        nargs="?",
        const=True,
        help="correct FashionIQ's frequent misspellings; '--spelling vocabulary': in the vocabulary only, as RTIC does by mistake",
    )
    add("--tokens", help="how sentences become words: strip_punct (default) or treebank (punctuation marks are words)")
    add("--marks", action="store_true", default=None, help="spell out punctuation as TIRG and VAL do ('sleeves.': 'sleevesdotmark')")
    add("--captions", help="joined (default): both captions of a pair are one sentence; single: each is a triplet of its own")
    add("--caption-style", help="how the two captions of a pair are joined: and (default), fiq2020, rtic, starter_kit")
    add(
        "--caption-order",
        help="of the two captions of a pair in training: shuffled (default, anew in every epoch), file, or legacy (the FashionIQ 2020 "
        "entry's fixed draw, in evaluation too)",
    )
    add(
        "--legacy-markers",
        action="store_true",
        default=None,
        help="[CLS], [SEP] and unknown words share the padding's id, as in the FashionIQ 2020 entry",
    )
    add("--projection", help="from features to embeddings: linear (default), mlp or none")
    add("--feature-norm", action="store_true", default=None, help="batch normalisation before the projection")
    add("--feature-dropout", type=float, help="share of image features dropped in training")
    add("--text-dropout", type=float, help="share of text features dropped in training")
    add("--caption-dropout", type=float, default=0.0, help="probability that one of the two captions is left out in training")
    group = parser.add_argument_group("training")
    add = group.add_argument
    add("--loss", help="matching loss (default batch_classification); `tf-fashion list losses` names them")
    add(
        "--target-embeddings",
        metavar="FILE",
        help=".npz with `ids` and `embeddings` that queries and targets are trained towards (loss match_embedding, match presets)",
    )
    add(
        "--init-from",
        metavar="FILE",
        help="model.keras of another run with the same options for the model, on the same captions: training begins with its weights "
        "(in place of --weights and --glove)",
    )
    add(
        "--graph-from",
        metavar="FILE",
        help="train as RTIC-GCN does: model.keras of a finished run whose features make a graph of alike training triplets, from "
        "which a second composer teaches the first (in training only: the saved model and the export have no part of it). Its "
        "authors use --preset rtic --loss batch_classification",
    )
    add("--graph-weight", type=float, help="weight of the graph's loss beside the matching loss (default 1)")
    add(
        "--graph-ratio",
        type=float,
        help="share of all pairs of triplets that are neighbours (default 0.198; 0.164 for fine-tuning with --init-from)",
    )
    add(
        "--graph-tau",
        type=float,
        help="weight of a triplet's neighbours against itself in the graph (default 0.445; 0.326 for fine-tuning)",
    )
    add(
        "--graph-option",
        dest="graph_options",
        action=Option,
        metavar="NAME=VALUE",
        help="hidden=WIDTH (default 1024) of the graph's network, class_balanced=true to give neighbours and others one half of its "
        "loss each; repeatable",
    )
    add("--scale", type=float, help="start of the learned scale (default 4); logits are scale^2 times the cosine")
    add(
        "--semantic-weight",
        type=float,
        default=0.0,
        help="weight of the visual-semantic loss: target photos against their descriptions",
    )
    add("--semantic-with", help="what descriptions are matched with: target (default) or query")
    add("--pretrain-epochs", type=int, default=0, metavar="N", help="epochs with the visual-semantic loss alone, before the others")
    add("--optimizer", help="adamw (default) or adam")
    add(
        "--schedule",
        help="of the learning rate: cosine (default), constant, step (a tenth after half the steps), or warmup_step (FashionIQ 2020: "
        "--learning-rate is for 16 triplets)",
    )
    add_optimizer(group)
    add("--l2-penalty", type=float, help="penalty on convolution and dense kernels as a part of the loss (VAL: 4e-5)")
    add("--epochs", type=int)
    add("--train-steps", type=int, metavar="N", help="optimizer steps of the whole run, in place of --epochs (whole epochs are run)")
    add("--batch-size", type=int, help="triplets per step, over all replicas")
    add_batches(group)
    add(
        "--legacy-triple-pass",
        action="store_true",
        default=None,
        help="show the backbone reference photos twice per step, as the FashionIQ 2020 entry does",
    )
    add_devices(group)
    group = parser.add_argument_group("evaluation and files")
    add = group.add_argument
    add("--protocol", help="named protocol (default: the dataset's usual one); `tf-fashion list protocols` explains them")
    add_files(group)
    add("--black-bad-images", action="store_true", help="missing and unreadable pictures count as black ones (FashionIQ 2020)")


def training_config(args: argparse.Namespace) -> Any:
    """The `ComposedConfig` of parsed arguments."""
    from tf_fashion.training.config import ComposedConfig

    return config_of(ComposedConfig, args)


def add_train(train: Any) -> None:
    """`train composed`."""
    composed = verb(
        train,
        "composed",
        "photo + sentence -> photo",
        "Trains a composed retriever: a photo and a sentence find the photo that is meant. Writes to --out:\n"
        "  model.keras, export/ (SavedModel), metrics.json, history.csv, sheet.png, report.html\n\n"
        "  tf-fashion train composed --data wardrobe --out runs/first\n"
        "  tf-fashion train composed --data fashion_iq --weights imagenet --freeze-backbone --out runs/frozen",
    )
    add_training_arguments(composed)
    composed.set_defaults(run=_train_composed)


def add_tune(tune: Any) -> None:
    """`tune composed`."""
    composed = verb(
        tune,
        "composed",
        "settings of `train composed`",
        "Trains again and again with settings that keras-tuner's Bayesian optimisation chooses; every run is kept in --out/runs.\n"
        "An interrupted search is continued by the same command; with more --trials it goes on. It needs the extra `tune`.\n"
        "Several workers on one search: set KERASTUNER_TUNER_ID, KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT as in keras-tuner's\n"
        "guide to distributed tuning. All options of `train composed` are taken; those that are searched replace them.\n\n"
        "  tf-fashion tune composed --data wardrobe --out runs/tuned --search learning_rate=1e-4:1e-2:log --search dim=128,256,512\n"
        "  tf-fashion tune composed --data wardrobe --out runs/tuned --composer rtic --search composer_options.blocks=1:6:int",
    )
    add_training_arguments(composed)
    group = composed.add_argument_group("search")
    group.add_argument(
        "--search",
        action="append",
        default=[],
        metavar="NAME=RANGE",
        help="what is searched: LOW:HIGH, LOW:HIGH:log, LOW:HIGH:int or A,B,C (for taps and descriptors A+B,C); repeatable "
        "(default: learning rate, feature dropout, scale and weight decay)",
    )
    group.add_argument("--trials", type=int, default=20, help="runs in all")
    group.add_argument("--search-seed", type=int, default=0, help="of the search; --seed is that of every run")
    group.add_argument(
        "--holdout", metavar="SPLIT", help="also measure the best model on this split, which takes no part in the choice"
    )
    composed.set_defaults(run=_tune_composed)


def add_evaluate(evaluate: Any) -> None:
    """`evaluate composed`."""
    composed = verb(
        evaluate,
        "composed",
        "photo + sentence -> photo",
        "Evaluates a model on a split and writes the numbers with their protocol, the same JSON that training writes.",
    )
    composed.add_argument("--model", required=True, metavar="FILE", help="model.keras of a training run")
    add_data_arguments(composed)
    composed.add_argument("--split", help="split to evaluate (default: val, or test where there is no val)")
    composed.add_argument(
        "--protocol", help="named protocol (default: the dataset's usual one); `tf-fashion list protocols` explains them"
    )
    composed.add_argument("--out", required=True, metavar="FILE", help="where to write the JSON")
    composed.add_argument("--report", metavar="DIR", help="also write sheet.png and report.html there")
    composed.add_argument(
        "--features", metavar="DIR", help="also write embeddings, distances and ground truth as .npy there, as the released VAL does"
    )
    composed.add_argument("--skip-bad-images", action="store_true", help="leave out unusable pictures and declare the smaller gallery")
    composed.add_argument("--quiet", dest="progress", action="store_false", help="no progress on the terminal")
    composed.set_defaults(run=_evaluate_composed)


def add_scores(verbs: Any) -> None:
    """`scores`."""
    scores = verb(
        verbs,
        "scores",
        "write how well every gallery entry answers every query, for `ensemble`",
        "Scores a split with a model and writes a folder with one matrix (queries x gallery) per category, the ids, and the protocol.\n"
        "The split needs no targets, so a challenge's test split can be scored too.\n\n"
        "  tf-fashion scores --model runs/a/model.keras --data fashion_iq --split val --out runs/a/scores/val",
    )
    scores.add_argument("--model", required=True, metavar="FILE", help="model.keras of a training run")
    add_data_arguments(scores)
    scores.add_argument("--split", help="split to score (default: val, or test where there is no val)")
    scores.add_argument(
        "--protocol", help="named protocol (default: the dataset's usual one); all members of an ensemble need the same"
    )
    scores.add_argument("--out", required=True, metavar="DIR", help="folder of the score file")
    scores.add_argument("--name", help="the member's name in tables and pictures (default: the model's folder)")
    scores.add_argument("--dtype", default="float32", help="float32, or float16 for half the size and about three digits")
    scores.add_argument(
        "--skip-bad-images", action="store_true", help="leave out unusable pictures; the galleries of members must agree"
    )
    scores.add_argument("--overwrite", action="store_true", help="replace older scores in --out")
    scores.add_argument("--quiet", dest="progress", action="store_false", help="no progress on the terminal")
    scores.set_defaults(run=_scores)


def add_ensemble(verbs: Any) -> None:
    """`ensemble`."""
    ensemble = verb(
        verbs,
        "ensemble",
        "fuse the scores of several models",
        "Finds the weights of a weighted sum of score files with keras-tuner's Bayesian optimisation and measures them by\n"
        "cross-fitting: the weights that a query is ranked with were found without it. Writes to --out:\n"
        "  ensemble.json, metrics.json, contributions.png, ranking.SPLIT.json, fused/ (a score file), submission/ (with --test)\n"
        "An interrupted search is continued by the same command; with more --trials it goes on. It needs the extra `tune`.\n\n"
        "  tf-fashion ensemble --members runs/a/scores/val runs/b/scores/val --out runs/both\n"
        "  tf-fashion ensemble --members runs/a/scores/val runs/b/scores/val --out runs/both \\\n"
        "    --test runs/a/scores/test runs/b/scores/test",
    )
    ensemble.add_argument("--members", nargs="+", required=True, metavar="DIR", help="score files of one split, with targets")
    ensemble.add_argument(
        "--test", nargs="+", default=(), metavar="DIR", help="score files of the same models on the test split, in the same order"
    )
    ensemble.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    ensemble.add_argument(
        "--normalise",
        default="zscore",
        help="how scores of different models are made comparable, query by query: zscore, cosine, rank, or raw (with each model's "
        "learned scale as a hidden weight, as the FashionIQ 2020 entry did)",
    )
    ensemble.add_argument("--trials", type=int, default=100, help="weightings to try in each search")
    ensemble.add_argument("--folds", type=int, default=5, help="parts of the queries for cross-fitting")
    ensemble.add_argument("--weights", type=numbers, metavar="W,W", help="use these weights instead of searching")
    ensemble.add_argument("--seed", type=int, default=0)
    ensemble.add_argument("--no-fused", dest="fused", action="store_false", help="do not write the fused score matrices")
    ensemble.add_argument("--overwrite", action="store_true", help="throw away another search in --out")
    ensemble.add_argument("--quiet", dest="progress", action="store_false", help="no progress on the terminal")
    ensemble.set_defaults(run=_ensemble)


def _train_composed(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.composed import train_composed

    train_composed(training_config(args))
    return 0


def _tune_composed(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.tuning import TuningConfig, tune_composed

    tune_composed(training_config(args), config_of(TuningConfig, args))
    return 0


def _evaluate_composed(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.commands import evaluate_model

    call(evaluate_model, args, model_path=args.model, dataset_name=args.dataset, protocol_name=args.protocol)
    return 0


def _scores(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.ensembling import export_scores

    folder = call(export_scores, args, model_path=args.model, dataset_name=args.dataset, protocol_name=args.protocol)
    print(f"The scores are in {folder}. Fuse them with others: tf-fashion ensemble --members {folder} ... --out DIR")
    return 0


def _ensemble(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.ensembling import EnsembleConfig, build_ensemble

    build_ensemble(config_of(EnsembleConfig, args))
    return 0
