"""`tf-fashion VERB ...`: everything from checking a folder to serving a model. TensorFlow is imported only by verbs that need it."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tf_fashion import __version__
from tf_fashion.core.errors import DataError, TfFashionError, UsageError
from tf_fashion.core.files import read_json
from tf_fashion.core.quiet import import_tensorflow_quietly

_EPILOG = """\
exit codes: 0 done; 1 something is wrong with the data or a file; 2 the command was used wrongly; 130 interrupted
"""


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps line breaks of descriptions and shows defaults where they say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, argparse.SUPPRESS):
            return action.help
        return super()._get_help_string(action)


def _parser(subparsers: Any, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    return subparsers.add_parser(name, help=summary, description=description, formatter_class=_Help, epilog=_EPILOG)


class _Option(argparse.Action):
    """Collects NAME=VALUE arguments into a dictionary."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        name, equals, text = str(values).partition("=")
        if not equals or not name:
            parser.error(f"{option_string}: expected NAME=VALUE, found {values!r}")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), name: value})


def _names(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(",") if part)


def add_data_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """`--data`, `--images`, `--categories`."""
    parser.add_argument(
        "--data", required=required, metavar="DIR", help="folder in the layout of FashionIQ, Fashion200k or Shoes, or a catalogue"
    )
    parser.add_argument("--images", metavar="DIR", help="folder of the pictures, if they are not in DATA/images")
    parser.add_argument("--dataset", default="auto", help="how DATA is read (`tf-fashion list datasets`); auto looks at its files")
    parser.add_argument("--categories", type=_names, metavar="A,B", help="only these categories (default: all that are found)")


def _add_backbone(group: Any) -> None:
    """The image network of a run."""
    add = group.add_argument
    add(
        "--backbone",
        help="image network; `tf-fashion list backbones` names them; saved_model:DIR takes a TF-Hub model or another SavedModel",
    )
    add(
        "--weights",
        metavar="FILE",
        help="pretrained weights of the backbone: a Keras weights file, or 'imagenet' to let Keras fetch its own",
    )
    add("--freeze-backbone", action="store_true", help="do not train the backbone; its features are computed once and cached")
    add("--image-size", type=int, metavar="PIXELS", help="side of the squares that the backbone sees")
    add("--resize", help="how photos become squares: squash (default), pad, crop, target_pad, square_pad")
    add("--interpolation", help="bilinear (default), bicubic, nearest, or bilinear_tf1 as TensorFlow 1 resized")
    add("--taps", type=_names, metavar="A,B", help="feature maps that are used: stage1 (fine) ... stage5 (deep), or low, mid, high")
    add("--pooling", help="avg, max, gem or avg_max")
    add("--descriptors", type=_names, metavar="A,B", help="weight-free descriptors beside the backbone: colour, shape ('' for none)")


def _add_optimizer(group: Any) -> None:
    add = group.add_argument
    for kind in ("optimizer", "schedule"):
        add(
            f"--{kind}-option",
            dest=f"{kind}_options",
            action=_Option,
            metavar="NAME=VALUE",
            help=f"argument of the {kind}'s class, VALUE as JSON or plain text; repeatable",
        )
    add("--ema", type=float, metavar="DECAY", help="use the moving average of the weights, with this decay per step (such as 0.999)")


def _add_batches(group: Any) -> None:
    add = group.add_argument
    add("--steps-per-epoch", type=int, help="shorten the epochs, so that the state is saved more often")
    add("--learning-rate", type=float, help="highest learning rate")
    add("--weight-decay", type=float)
    add("--backbone-factor", type=float, help="factor of the backbone's learning rate")
    add("--flip", action="store_true", default=None, help="mirror training photos at random")
    add(
        "--augment",
        nargs="?",
        const="fashion_iq_2020",
        help="change training photos at random: fashion_iq_2020 (mirror, turn, shift, scale; _legacy: nearest neighbour), clip "
        "(random resized crop), val (mirror, random crop) or val_mirror",
    )


def _add_devices(group: Any) -> None:
    add = group.add_argument
    add("--seed", type=int, default=0)
    add("--select", default="last", help="which weights are kept: last, or best on the evaluated split (then its number is optimistic)")
    add("--patience", type=int, help="stop after this many epochs without improvement on the evaluated split")
    add("--strategy", default="none", help="none, or mirrored to spread each batch over all GPUs")
    add("--devices", type=_names, metavar="A,B", help="devices of the mirrored strategy, such as gpu:0,gpu:1 or cpu:0,cpu:1")
    add("--precision", default="auto", help="auto, float32, mixed_float16, mixed_bfloat16; auto is mixed on GPUs")
    add("--deterministic", action="store_true", help="only operations with repeatable results (slower)")


def _add_files(group: Any) -> None:
    add = group.add_argument
    add("--split", help="split to evaluate (default: val, or test where there is no val)")
    add("--evaluate-every", type=int, default=1, metavar="N", help="evaluate after every Nth epoch")
    add("--cache", metavar="DIR", help="where features of frozen backbones are kept (default: ~/.cache/tf-fashion/features)")
    add(
        "--skip-bad-images",
        action="store_true",
        help="leave out pictures that are missing or unreadable instead of stopping; the result says so",
    )
    add("--overwrite", action="store_true", help="replace another run in --out")
    add("--tensorboard", action="store_true", help="write TensorBoard logs (pip install 'tf-fashion[tensorboard]')")
    add("--no-report", dest="report", action="store_false", help="no sheet.png and report.html")
    add("--no-export", dest="export", action="store_false", help="no SavedModel")
    add("--quiet", dest="progress", action="store_false", help="no progress on the terminal")


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
            action=_Option,
            metavar="NAME=VALUE",
            help=f"argument of the {kind}'s class, VALUE as JSON or plain text; repeatable",
        )
    _add_backbone(group)
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
        action=_Option,
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
    _add_optimizer(group)
    add("--l2-penalty", type=float, help="penalty on convolution and dense kernels as a part of the loss (VAL: 4e-5)")
    add("--epochs", type=int)
    add("--train-steps", type=int, metavar="N", help="optimizer steps of the whole run, in place of --epochs (whole epochs are run)")
    add("--batch-size", type=int, help="triplets per step, over all replicas")
    _add_batches(group)
    add(
        "--legacy-triple-pass",
        action="store_true",
        default=None,
        help="show the backbone reference photos twice per step, as the FashionIQ 2020 entry does",
    )
    _add_devices(group)
    group = parser.add_argument_group("evaluation and files")
    add = group.add_argument
    add("--protocol", help="named protocol (default: the dataset's usual one); `tf-fashion list protocols` explains them")
    _add_files(group)
    add("--black-bad-images", action="store_true", help="missing and unreadable pictures count as black ones (FashionIQ 2020)")


def _add_pair_data(add: Any) -> None:
    """Where pictures and their texts come from, for verbs that can do without."""
    add("--data", metavar="DIR", help="folder in FashionGen's layout, or a shop's folder with a CSV file of descriptions")
    add("--images", metavar="DIR", help="folder of pictures or .npz file of arrays; with --data: if they are not there")
    add("--dataset", default="auto", help="how DATA is read: fashion_gen, text_catalogue; auto looks at its files")
    add(
        "--data-option",
        dest="data_options",
        action=_Option,
        metavar="NAME=VALUE",
        help="argument of the dataset's class, as in `train dual`; repeatable",
    )


def _add_dual_evaluation(verb: Any) -> None:
    """`evaluate dual`."""
    dual = _parser(
        verb,
        "dual",
        "photo <-> text",
        "Measures image-text retrieval in both directions under a named protocol and writes the numbers with it: either a model on a\n"
        "dataset, or features in files (.jsonl of FashionKLIP, .npz, an index) on a dataset or against files of right answers.\n\n"
        "  tf-fashion evaluate dual --model runs/a/model.keras --data fashion_gen --out runs/a/full.json\n"
        "  tf-fashion evaluate dual --model runs/a/model.keras --data fashion_gen --protocol sample \\\n"
        "    --groups styles.csv:subCategory --out runs/a/sample.json\n"
        "  tf-fashion evaluate dual --image-features val.img_feat.jsonl --text-features val.txt_feat.jsonl \\\n"
        "    --text-truth fashion-gen_val_queries.jsonl --image-truth fashion-gen_val_images.jsonl --out full.json",
    )
    add = dual.add_argument
    add("--model", metavar="FILE", help="model.keras of `train dual`; needs --data")
    add("--image-features", "--image-feats", metavar="FILE", help="features of pictures, in place of a model")
    add("--text-features", "--text-feats", metavar="FILE", help="features of texts")
    _add_pair_data(add)
    add("--split", help="split of DATA (default: val, or test where there is no val)")
    add("--text-truth", "--text-standard-path", metavar="FILE", help="JSON lines: query_id, item_ids (right pictures)")
    add(
        "--image-truth",
        "--image-standard-path",
        metavar="FILE",
        help="JSON lines: image_id, item_ids (right texts); without it they follow from --text-truth, and the other way round",
    )
    add("--groups", metavar="CSV[:COLUMN]", help="what each picture shows, for the protocol `sample` (default: what DATA says)")
    add("--protocol", default="full", help="full, sample, sample-101 or subset-1k; `tf-fashion list protocols` explains them")
    add(
        "--protocol-option",
        dest="protocol_options",
        action=_Option,
        metavar="NAME=VALUE",
        help="change a field of the protocol: queries, negatives, group, fill, repeats, seed, subset, tie, ks; repeatable",
    )
    add("--metric", default="dot", choices=("dot", "cosine"), help="of features in files; a model's embeddings have length one")
    add("--precision", default="float64", choices=("float64", "float32"), help="float64 is the same on every machine, float32 faster")
    add("--out", required=True, metavar="FILE", help="where to write the JSON")
    add("--name", help="the result's name in tables (default: the file's)")
    add("--report", metavar="DIR", help="also write sheet.png and report.html there (with --data)")
    add("--skip-bad-images", action="store_true", help="leave out unusable pictures and declare the smaller gallery")
    add("--quiet", dest="progress", action="store_false", help="no progress on the terminal")
    dual.set_defaults(run=_evaluate_dual)


def _add_leaderboard(verb: Any) -> None:
    """`evaluate leaderboard`."""
    board = _parser(
        verb,
        "leaderboard",
        "the tasks of Marqo's fashion leaderboard",
        "Text to image (Recall@1, Recall@10, their mean, MRR), category to product and sub-category to product (P@1, P@10, their\n"
        "mean, MRR) on a catalogue: a folder with pictures and a CSV file.\n\n"
        "  tf-fashion evaluate leaderboard --model runs/a/model.keras --catalogue shop --category masterCategory \\\n"
        "    --sub-category subCategory --out runs/a/leaderboard.json",
    )
    add = board.add_argument
    add("--model", required=True, metavar="FILE", help="model.keras of `train dual`")
    add("--catalogue", required=True, metavar="DIR", help="folder of the catalogue")
    add("--table", metavar="FILE", help="its CSV file, if there are several or it lies elsewhere")
    add("--images", metavar="DIR", help="folder of the pictures, if they are not in the catalogue")
    add("--text", metavar="COLUMN", help="column of descriptions (default: description, text, caption, title or name)")
    add("--category", default="category", metavar="COLUMN", help="column of categories")
    add("--sub-category", metavar="COLUMN", help="column of sub-categories (default: this task is left out)")
    add("--name", help="the model's name in tables (default: the file's)")
    add("--dataset-name", help="the data's name in tables (default: the folder's)")
    add("--out", required=True, metavar="FILE", help="where to write the JSON")
    add("--skip-bad-images", action="store_true", help="leave out unusable pictures")
    add("--quiet", dest="progress", action="store_false", help="no progress on the terminal")
    board.set_defaults(run=_evaluate_leaderboard)


def _add_predictions(verbs: Any) -> None:
    """`predict retrieval` and `predict zero-shot`."""
    predict = _parser(verbs, "predict", "write what a model finds", "Write predictions.").add_subparsers(
        dest="what", metavar="WHAT", required=True
    )
    retrieval = _parser(
        predict,
        "retrieval",
        "the nearest pictures of every text, and the other way round",
        "Ranks all pictures for every text and all texts for every picture by the product of their features, and writes the best of\n"
        "them in FashionKLIP's format; with files of right answers also its score files (R@1, R@5, R@10, their mean). Into --out:\n"
        "  text_predictions.jsonl, image_predictions.jsonl, text_output.json, image_output.json\n"
        "Exit code 1 if a score file reports a failure (0 with --original-errors).\n\n"
        "  tf-fashion predict retrieval --image-features val.img_feat.jsonl --text-features val.txt_feat.jsonl \\\n"
        "    --text-truth fashion-gen_val_queries.jsonl --image-truth fashion-gen_val_images.jsonl --out predictions",
    )
    add = retrieval.add_argument
    add("--image-features", "--image-feats", required=True, metavar="FILE", help="features of pictures: .jsonl, .npz or an index")
    add("--text-features", "--text-feats", required=True, metavar="FILE", help="features of texts")
    add("--out", metavar="DIR", help="folder of the four files; each can go elsewhere:")
    add("--output-images", metavar="FILE", help="texts found for every picture")
    add("--output-texts", metavar="FILE", help="pictures found for every text")
    add("--image-truth", "--image-standard-path", metavar="FILE", help="JSON lines: image_id, item_ids (right texts)")
    add("--text-truth", "--text-standard-path", metavar="FILE", help="JSON lines: query_id, item_ids (right pictures)")
    add("--image-out-path", metavar="FILE", help="scores of picture queries (image to text)")
    add("--text-out-path", metavar="FILE", help="scores of text queries (text to image)")
    add("--top-k", type=int, default=10, metavar="K", help="how many to find; with fewer than 10, R@10 means R@K")
    add("--eval-batch-size", type=int, default=8192, metavar="N", help="gallery rows at a time; the result does not depend on it")
    add("--precision", default="float64", choices=("float64", "float32"), help="float64 is the same on every machine, float32 faster")
    add("--original-ids", action="store_true", help='15 and "15" are different ids, as in FashionKLIP\'s program')
    add(
        "--original-errors",
        action="store_true",
        help="score files as FashionKLIP's program writes them: strict types of ids, bare reasons of failures, no remarks",
    )
    add("--quiet", dest="progress", action="store_false", help="no progress on the terminal")
    retrieval.set_defaults(run=_predict_retrieval)
    zero_shot = _parser(
        predict,
        "zero-shot",
        "classes of pictures by the names of the classes",
        "Gives every picture the class whose name, said in several sentences, is nearest. Writes predictions.csv into --out, and with\n"
        "labels scores.json (accuracy, weighted and macro F1, each class, confusions).\n\n"
        "  tf-fashion predict zero-shot --model runs/a/model.keras --images photos --classes dress,shirt,shoe --out classes\n"
        "  tf-fashion predict zero-shot --model runs/a/model.keras --images photos --labels styles.csv:articleType --out classes",
    )
    add = zero_shot.add_argument
    add("--model", required=True, metavar="FILE", help="model.keras of `train dual`")
    add("--images", metavar="DIR", help="folder of photos, catalogue, or .npz file of arrays")
    add("--image-features", metavar="FILE", help="their features, in place of the photos")
    add("--classes", metavar="A,B,C", help="names of the classes, or a text file with one per line (default: those of --labels)")
    add("--labels", metavar="CSV[:COLUMN]", help="the right class of each picture, by id")
    add("--templates", metavar="FILE", help="sentences, one per line, with {} where the name goes (default: eight of our own)")
    add("--top", type=int, default=1, metavar="K", help="classes per picture")
    add("--out", required=True, metavar="DIR", help="folder for the results")
    add("--skip-bad-images", action="store_true", help="leave out unusable pictures (bad_images.csv lists them)")
    add("--quiet", dest="progress", action="store_false", help="no progress on the terminal")
    zero_shot.set_defaults(run=_predict_zero_shot)


def _add_embedding(verbs: Any) -> None:
    """`embed`."""
    embed = _parser(
        verbs,
        "embed",
        "embed photos into an index, or photos and texts into feature files",
        "With a model of `train composed`: embeds every photo of a folder (or of a catalogue with a CSV) and writes an index that\n"
        "`search` reads. Photos that are in the index already are not embedded again.\n\n"
        "With `dual` and a model of `train dual`: embeds pictures and texts into files that `predict retrieval` and `evaluate dual`\n"
        "read: images.img_feat.npz and texts.txt_feat.npz, or .jsonl in FashionKLIP's format. The same command continues an\n"
        "interrupted one; bad pictures are listed at the end, and what was computed is kept until they are repaired.\n\n"
        "  tf-fashion embed --model runs/first/model.keras --images photos --out index\n"
        "  tf-fashion embed dual --model runs/a/model.keras --data fashion_gen --split val --format jsonl --out features\n"
        "  tf-fashion embed dual --model runs/a/model.keras --images photos --texts shop.csv:description --out features",
    )
    add = embed.add_argument
    add("what", nargs="?", default="composed", choices=("composed", "dual"), help="kind of the model")
    add("--model", required=True, metavar="FILE", help="model.keras of a training run")
    _add_pair_data(embed.add_argument_group("what is embedded (composed: --images)").add_argument)
    add("--out", required=True, metavar="DIR", help="folder of the index or of the feature files")
    add("--split", help="dual: only this split of DATA (default: all)")
    add("--texts", metavar="FILE", help="dual: .jsonl with query_id and query_text, CSV[:COLUMN], or .txt with one text per line")
    add("--format", type=_names, metavar="A,B", help="dual: npz (default), jsonl, or both as npz,jsonl")
    add("--dtype", default="float32", choices=("float32", "float16"), help="dual: of the .npz files")
    add("--batch-size", type=int, default=32, help="dual: pictures at a time")
    add("--skip-bad-images", action="store_true", help="leave out unusable pictures (bad_images.csv lists them)")
    add("--quiet", dest="progress", action="store_false", help="no progress on the terminal")
    embed.set_defaults(run=_embed)


def add_dual_arguments(parser: argparse.ArgumentParser) -> None:
    """All options of `train dual`."""
    add = parser.add_argument
    add(
        "--data", required=True, metavar="DIR", help="folder in FashionGen's layout, or a shop's folder with a CSV file of descriptions"
    )
    add("--images", metavar="DIR", help="folder of the pictures or .npz file, if they are not in DATA")
    add("--dataset", default="auto", help="how DATA is read: fashion_gen, text_catalogue; auto looks at its files")
    add(
        "--data-option",
        dest="data_options",
        action=_Option,
        default={},
        metavar="NAME=VALUE",
        help="argument of the dataset's class (FashionGen: train, val, concepts, fathers, kb_concepts, concept_images, skip_bad_lines, "
        "...; catalogue: csv, text_column, val_share); repeatable",
    )
    add("--groups", metavar="CSV[:COLUMN]", help="what each picture shows, for the protocol `sample` (default: what DATA says)")
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
        "small network without pretrained weights), tiny_clip (a small CLIP without them), finetune (a published CLIP trained along; "
        "for GPUs), fashion_klip and fashion_klip_original (the released FashionKLIP, without and with its mistakes), siglip; "
        "`tf-fashion list presets` shows them; auto goes by --weights and --freeze-backbone",
    )
    add("--clip", help="both towers are CLIP's, of these sizes: tiny, ViT-B/32, ViT-B/16, ViT-L/14, or a configuration file (.json)")
    add(
        "--bpe",
        metavar="FILE",
        help="CLIP's vocabulary (bpe_simple_vocab_16e6.txt.gz); without one, byte pairs are learned from the training texts",
    )
    add("--bpe-size", type=int, help="tokens of a learned vocabulary (default 4096)")
    add("--context-length", type=int, help="longest text in tokens (default: the configuration's)")
    _add_backbone(group)
    add("--text-encoder", help="gru, lstm, lstm_gru, bigru, bilstm, swem, or clip (of the sizes of --clip)")
    add(
        "--text-option",
        dest="text_options",
        action=_Option,
        metavar="NAME=VALUE",
        help="argument of the text encoder's class, VALUE as JSON or plain text; repeatable",
    )
    add("--dim", type=int, help="width of the embeddings (with --clip: the configuration's)")
    add("--word-dim", type=int, help="width of the word vectors")
    add("--text-units", type=int, help="width of recurrent text layers (default: DIM)")
    add("--text-dropout", type=float, help="share of text features dropped in training")
    add("--tokens", help="how texts become words: strip_punct (default) or treebank (punctuation marks are words)")
    add("--projection", help="from image features to embeddings: linear, mlp or none")
    add("--feature-norm", action="store_true", default=None, help="batch normalisation before the projection")
    add("--feature-dropout", type=float, help="share of image features dropped in training")
    add("--init-from", metavar="FILE", help="model.keras of another run with the same options: training begins with its weights")
    group = parser.add_argument_group("objective")
    add = group.add_argument
    add(
        "--loss",
        help="batch_classification (default: CLIP's, both directions), chunked_infonce (the same with little memory), or sigmoid "
        "(SigLIP's)",
    )
    add(
        "--loss-option",
        dest="loss_options",
        action=_Option,
        metavar="NAME=VALUE",
        help="argument of the loss' class, VALUE as JSON or plain text; repeatable",
    )
    add(
        "--same-pairs",
        help="pairs that belong together and are no negatives: phrases (default: same picture, same text, or same set of phrases), "
        "text (same picture or text), none (as the originals)",
    )
    add("--scale", type=float, help="start of the factor of the cosines, exp(logit scale) (default 1/0.07)")
    add("--bias", type=float, help="start of the sigmoid loss' bias (SigLIP: -10)")
    add(
        "--concept-loss",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="FashionKLIP's concept-visual alignment: concepts of a text against pictures that stand for them",
    )
    add(
        "--concept-option",
        dest="concept_options",
        action=_Option,
        metavar="NAME=VALUE",
        help="argument of the concept loss: top, keep_negative, mask_same_concept, original_padding, original_transposed, chunk_size",
    )
    add("--concept-weighting", help="adaptive (default: a fifth of the contrastive loss), original (the same, not clipped) or fixed")
    add("--concept-weight", type=float, help="factor of the concept loss under --concept-weighting fixed")
    add("--concept-start", type=int, metavar="EPOCHS", help="epochs with the contrastive loss alone (the original's finetune-only: 10)")
    add("--concept-slots", type=int, help="concepts per text (default 5)")
    add("--concept-sources", help="data (default) or data+kb: concepts of the knowledge base in further slots")
    add("--concept-candidates", type=int, metavar="N", help="nearest pictures that a concept's prototypes are chosen from (20)")
    add("--concept-prototypes", type=int, metavar="N", help="prototypes of a concept (10)")
    add("--concept-diversity", type=float, help="weight of diversity in that choice (0.8)")
    for name, what in (
        ("original-selection", "add fathers of concepts only if all of them fit, grandfathers never, as in the released FashionKLIP"),
        ("swap-father-maps", "take the fathers of each vocabulary's concepts from the other one, as in the released FashionKLIP"),
        ("original-truncation", "cut long texts without an end token, as in the released FashionKLIP (all get one embedding)"),
    ):
        add(f"--{name}", action="store_true", default=None, help=what)
    group = parser.add_argument_group("training")
    add = group.add_argument
    add("--optimizer", help="adamw (default) or adam")
    add("--schedule", help="of the learning rate: cosine (default), constant, or step (a tenth after half the steps)")
    _add_optimizer(group)
    add("--epochs", type=int)
    add("--batch-size", type=int, help="pairs per step, over all replicas")
    add(
        "--global-batch",
        type=int,
        metavar="N",
        help="pairs per step, of which --batch-size go through the towers at a time: the gradient is that of N pairs, the memory that "
        "of --batch-size (gradient caching)",
    )
    _add_batches(group)
    _add_devices(group)
    group = parser.add_argument_group("evaluation and files")
    group.add_argument(
        "--protocol", help="full (default), sample (1 right and 99 wrong ones of the same sub-category), sample-101, subset-1k"
    )
    _add_files(group)


def config_of(kind: type, args: argparse.Namespace) -> Any:
    """A configuration (a dataclass) from parsed arguments of the same names."""
    import dataclasses

    names = {field.name for field in dataclasses.fields(kind)}
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in vars(args).items() if key in names}
    return kind(**values)


def training_config(args: argparse.Namespace) -> Any:
    """The `ComposedConfig` of parsed arguments."""
    from tf_fashion.training.config import ComposedConfig

    return config_of(ComposedConfig, args)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="tf-fashion",
        description='Find fashion items by photo, by words, and by a photo with words ("this one, but red and longer").',
        epilog="`tf-fashion VERB --help` explains a verb.\n" + _EPILOG,
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=f"tf-fashion {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    data = _parser(verbs, "data", "check a dataset, or draw one", "Look after datasets.").add_subparsers(
        dest="what", metavar="WHAT", required=True
    )
    check = _parser(
        data,
        "check",
        "what is missing or wrong in a dataset",
        "Reads a dataset's files, opens every picture, and lists what is wrong: missing and unreadable pictures by name, captions of\n"
        "the wrong type, ids that leave the folder, empty categories. Exit code 1 if there are errors.",
    )
    check.add_argument("folder", metavar="DIR")
    check.add_argument("--images", metavar="DIR", help="folder of the pictures, if they are not in DIR/images")
    check.add_argument("--kind", default="auto", help="name of the layout (`tf-fashion list datasets`); auto looks")
    check.add_argument("--no-decode", dest="decode", action="store_false", help="read the headers of the pictures only")
    check.add_argument("--limit", type=int, default=10, metavar="N", help="problems of one kind to print")
    check.add_argument("--csv", metavar="FILE", help="write all problems to this file")
    check.set_defaults(run=_data_check)
    draw = _parser(
        data,
        "draw",
        "draw a wardrobe: a dataset made on the spot, without downloads",
        "Draws pictures of garments and writes truthful modification sentences, in FashionIQ's layout or another. The same\n"
        "arguments give the same files. An interrupted drawing is continued by the same command.",
    )
    draw.add_argument("folder", metavar="DIR")
    draw.add_argument(
        "--layout", default="fashion_iq", help="of the files beside the pictures: fashion_iq, fashion200k, shoes or fashion_gen"
    )
    draw.add_argument("--items", type=int, default=3600, help="pictures over all categories and splits")
    draw.add_argument("--size", type=int, default=128, help="side of the pictures in pixels")
    draw.add_argument("--seed", type=int, default=0)
    draw.set_defaults(run=_data_draw)

    prepare = _parser(
        data,
        "prepare",
        "write the intermediate files that the released VAL programs read",
        "Writes caption pairs, tags and ground-truth matrices of FashionIQ, Shoes or Fashion200k as the original's generators do,\n"
        "byte for byte. tf-fashion itself reads the annotations directly and needs none of them.",
    )
    prepare.add_argument("folder", metavar="DIR")
    prepare.add_argument("--out", required=True, metavar="DIR", help="takes the place of the original's folder datasets/")
    prepare.add_argument("--images", metavar="DIR", help="folder of the pictures, if they are not in DIR's own place")
    prepare.add_argument("--dataset", default="auto", help="fashion_iq, shoes or fashion200k; auto looks at the files")
    prepare.add_argument("--prefix", default="datasets/", help="what stands before the paths of Shoes")
    prepare.set_defaults(run=_data_prepare)

    train = _parser(verbs, "train", "train a model", "Train a model.").add_subparsers(dest="what", metavar="WHAT", required=True)
    composed = _parser(
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

    dual = _parser(
        train,
        "dual",
        "text <-> photo",
        "Trains a dual encoder: texts find photos and photos find texts (CLIP, FashionKLIP, or any image and text encoder).\n"
        "Writes to --out: model.keras, export/ (SavedModel), metrics.json, history.csv, sheet.png, report.html\n\n"
        "  tf-fashion train dual --data wardrobe-fashion_gen --out runs/first\n"
        "  tf-fashion train dual --data fashion_gen --images photos --weights imagenet --freeze-backbone --concept-loss --out runs/2\n"
        "  tf-fashion train dual --data fashion_gen --preset fashion_klip --weights ViT-B-32.pt --bpe bpe_simple_vocab_16e6.txt.gz "
        "--out runs/klip",
    )
    add_dual_arguments(dual)
    dual.set_defaults(run=_train_dual)

    tune = _parser(verbs, "tune", "search for good settings", "Search for good settings.").add_subparsers(
        dest="what", metavar="WHAT", required=True
    )
    composed = _parser(
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

    evaluate = _parser(verbs, "evaluate", "measure a model", "Measure a model under a named protocol.").add_subparsers(
        dest="what", metavar="WHAT", required=True
    )
    composed = _parser(
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
    _add_dual_evaluation(evaluate)
    _add_leaderboard(evaluate)

    scores = _parser(
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

    ensemble = _parser(
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
    ensemble.add_argument("--weights", type=_numbers, metavar="W,W", help="use these weights instead of searching")
    ensemble.add_argument("--seed", type=int, default=0)
    ensemble.add_argument("--no-fused", dest="fused", action="store_false", help="do not write the fused score matrices")
    ensemble.add_argument("--overwrite", action="store_true", help="throw away another search in --out")
    ensemble.add_argument("--quiet", dest="progress", action="store_false", help="no progress on the terminal")
    ensemble.set_defaults(run=_ensemble)

    _add_embedding(verbs)
    _add_predictions(verbs)

    search = _parser(
        verbs,
        "search",
        "search a folder by words, by a photo, or by a photo and a sentence",
        "With a model of `train composed`, a photo and a sentence that says what should be different:\n"
        '  tf-fashion search --model model.keras --gallery photos --photo dress.jpg --text "is red and longer" --sheet found.png\n\n'
        "With a model of `train dual`, words, a photo, or the sum of both:\n"
        '  tf-fashion search --model dual.keras --gallery photos --text "a red summer dress" --sheet found.png',
    )
    search.add_argument("--model", required=True, metavar="FILE", help="model.keras of a training run")
    where = search.add_mutually_exclusive_group(required=True)
    where.add_argument("--gallery", metavar="DIR", help="folder of photos to search")
    where.add_argument("--index", metavar="PATH", help="what `tf-fashion embed` wrote (`embed dual`: its file of images)")
    search.add_argument("--photo", metavar="FILE", help="the reference photo (with a model of `train dual`: find alike ones)")
    search.add_argument("--text", default="", help="what should be different (with a model of `train dual`: what is wanted)")
    search.add_argument(
        "--then",
        action="append",
        default=[],
        metavar="TEXT",
        help="what should be different about the best picture found; repeatable: each is one more turn of the search",
    )
    search.add_argument("--memory", type=float, default=0.5, help="weight of a turn relative to the next one; 0 forgets earlier wishes")
    search.add_argument("--top", type=int, default=8, metavar="K", help="how many to find")
    search.add_argument("--sheet", metavar="FILE", help="write a picture of the query and what was found (.png)")
    search.add_argument("--skip-bad-images", action="store_true", help="leave out unusable pictures of the gallery")
    search.add_argument("--quiet", dest="progress", action="store_false", help="no progress on the terminal")
    search.set_defaults(run=_search)

    export = _parser(
        verbs,
        "export",
        "write a SavedModel for serving",
        "Writes a SavedModel, whose signatures take `image_bytes` and `text`: decoding, resizing and tokenising are inside.",
    )
    export.add_argument("--model", required=True, metavar="FILE", help="model.keras of a training run")
    export.add_argument("--out", required=True, metavar="DIR", help="folder of the SavedModel (for TensorFlow Serving: MODEL/1)")
    export.set_defaults(run=_export)

    weights = _parser(verbs, "weights", "pretrained weights", "Look after pretrained weights.").add_subparsers(
        dest="what", metavar="WHAT", required=True
    )
    convert = _parser(
        weights,
        "convert",
        "a published checkpoint becomes a weights file for --weights",
        "Converts a checkpoint of TensorFlow 1 (TF-slim) or of torchvision (.pth, .pt, .safetensors; PyTorch is not needed and\n"
        "nothing in the file is executed) into a Keras weights file and reports every variable: used, left aside and why, missing.\n"
        "`tf-fashion weights list` says where checkpoints are published; unpack TF-slim's archives first.\n\n"
        "  tf-fashion weights convert resnet50-0676ba61.pth --to torch_resnet50 --out torch_resnet50.weights.h5\n"
        "  tf-fashion weights convert mobilenet_v1_1.0_224.ckpt --to slim_mobilenet_v1 --out slim_mobilenet_v1.weights.h5\n"
        "  tf-fashion train composed --backbone slim_mobilenet_v1 --weights slim_mobilenet_v1.weights.h5 --data DIR --out DIR",
    )
    convert.add_argument("source", metavar="SRC", help="the file; of TF-slim's: what precedes .index and .data-00000-of-00001")
    convert.add_argument("--to", required=True, metavar="NAME", help="network of the checkpoint: `weights list` shows them")
    convert.add_argument("--out", required=True, metavar="FILE", help="file to write, ending in .weights.h5; an older one is replaced")
    convert.add_argument("--ema", action="store_true", help="take the moving averages of the weights, where the checkpoint has them")
    convert.add_argument("--all", dest="everything", action="store_true", help="print every name, not only the first of each kind")
    convert.set_defaults(run=_weights_convert)
    published = _parser(
        weights,
        "list",
        "what is published where",
        "Lists published weights: their address, licence and SHA-256, and how to use them. Nothing is downloaded.",
    )
    published.add_argument("--manifest", metavar="FILE", help="the list to read (default: pretrained/manifest.json)")
    published.set_defaults(run=_weights_list)

    concepts = _parser(verbs, "concepts", "phrases of captions as concepts", "Look after concepts.").add_subparsers(
        dest="what", metavar="WHAT", required=True
    )
    mine = _parser(
        concepts,
        "mine",
        "find the concepts of one's own captions",
        "Finds noun phrases that occur often enough and what each is a kind of, and writes the files that FashionGen's layout has:\n"
        "texts with their phrases, concepts, fathers of concepts. It needs the extra `concepts`; an installed spaCy model is used.\n\n"
        "  tf-fashion concepts mine shop.csv --column description --out concepts\n"
        "  tf-fashion concepts mine fashion_gen --kb fashion_kb/icbu_concepts_queries.jsonl --out concepts",
    )
    mine.add_argument("source", metavar="SRC", help="folder of a dataset of pictures and texts, a .jsonl file or a .csv file")
    mine.add_argument("--out", required=True, metavar="DIR", help="folder for the files; older ones are replaced")
    mine.add_argument("--column", help="key or column of the texts in a file (default: query_text, description, text, ...)")
    mine.add_argument("--split", default="train", help="split of a dataset")
    mine.add_argument("--name", default="mined", help="first part of the files' names")
    mine.add_argument("--tagger", default="auto", help="spacy, textblob, or auto: spacy if it has an English model")
    mine.add_argument("--min-count", type=int, default=2, metavar="N", help="captions that a phrase has to occur in")
    mine.add_argument("--max-words", type=int, default=6, metavar="N", help="words that a phrase may have")
    mine.add_argument("--max-concepts", type=int, metavar="N", help="keep only the most frequent")
    mine.add_argument("--kb", metavar="FILE", help="second vocabulary (..._concepts_queries.jsonl) for match_phrases")
    mine.add_argument("--quiet", dest="progress", action="store_false", help="no progress on the terminal")
    mine.set_defaults(run=_concepts_mine)

    listing = _parser(verbs, "list", "names that other verbs take", "Lists what can be named elsewhere.")
    listing.add_argument("kind", choices=("backbones", "composers", "datasets", "losses", "presets", "protocols", "text-encoders"))
    listing.set_defaults(run=_list)
    return parser


def _data_check(args: argparse.Namespace) -> int:
    from tf_fashion.datasets import check_tree

    report = check_tree(args.folder, args.images, kind=args.kind, decode=args.decode, progress=sys.stderr.isatty())
    print(report.format(limit=args.limit))
    if args.csv:
        report.write(args.csv)
    return 0 if report.ok else 1


def _data_draw(args: argparse.Namespace) -> int:
    from tf_fashion.datasets.wardrobe import draw_wardrobe

    root = draw_wardrobe(args.folder, items=args.items, seed=args.seed, size=args.size, layout=args.layout)
    print(f"The wardrobe is in {root}. Look at it with: tf-fashion data check {root}")
    return 0


def _data_prepare(args: argparse.Namespace) -> int:
    from tf_fashion.core.files import make_out_folder
    from tf_fashion.datasets import open_composed
    from tf_fashion.datasets.val_files import prepare

    dataset = open_composed(args.folder, args.images, name=args.dataset)
    out = make_out_folder(args.out)
    print("\n".join([*prepare(dataset, out, args.prefix), f"The files are in {out}."]))
    return 0


def _train_composed(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.composed import train_composed

    train_composed(training_config(args))
    return 0


def dual_config(args: argparse.Namespace) -> Any:
    """The `DualConfig` of parsed arguments."""
    from tf_fashion.training.dual_config import DualConfig

    return config_of(DualConfig, args)


def _train_dual(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.dual import train_dual

    train_dual(dual_config(args))
    return 0


def _tune_composed(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.tuning import TuningConfig, tune_composed

    tune_composed(training_config(args), config_of(TuningConfig, args))
    return 0


def _evaluate_composed(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.commands import evaluate_model

    evaluate_model(
        args.model,
        args.data,
        args.images,
        args.dataset,
        args.categories,
        args.split,
        args.protocol,
        args.out,
        args.report,
        args.skip_bad_images,
        args.progress,
        args.features,
    )
    return 0


def _scores(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.ensembling import export_scores

    folder = export_scores(
        args.model,
        args.data,
        args.images,
        args.dataset,
        args.categories,
        args.split,
        args.protocol,
        args.out,
        args.dtype,
        args.skip_bad_images,
        args.overwrite,
        args.progress,
        args.name,
    )
    print(f"The scores are in {folder}. Fuse them with others: tf-fashion ensemble --members {folder} ... --out DIR")
    return 0


def _ensemble(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.ensembling import EnsembleConfig, build_ensemble

    build_ensemble(config_of(EnsembleConfig, args))
    return 0


def _embed(args: argparse.Namespace) -> int:
    if args.what == "composed":
        given = [f"--{name}" for name in ("data", "split", "texts") if getattr(args, name) is not None]
        if given:
            raise UsageError(f"{', '.join(given)}: only for models of `train dual`. Say: tf-fashion embed dual ...")
        if args.images is None:
            raise UsageError("--images is missing: the folder of photos.")
    import_tensorflow_quietly()
    if args.what == "composed":
        from tf_fashion.training.commands import embed_folder

        index = embed_folder(args.model, args.images, args.out, args.skip_bad_images, args.progress)
        print(f"{len(index)} photos are in the index {args.out}")
        return 0
    from tf_fashion.training.dual_commands import embed_dual

    written = embed_dual(
        args.model,
        args.out,
        args.data,
        args.images,
        args.dataset,
        args.data_options,
        args.split,
        args.texts,
        args.format or ("npz",),
        args.dtype,
        args.batch_size,
        args.skip_bad_images,
        args.progress,
    )
    print("Written:", *map(str, written), sep="\n  ")
    return 0


def _predict_retrieval(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.dual_commands import predict_retrieval, retrieval_table

    results = predict_retrieval(
        args.image_features,
        args.text_features,
        args.out,
        args.output_images,
        args.output_texts,
        args.image_truth,
        args.text_truth,
        args.image_out_path,
        args.text_out_path,
        args.top_k,
        args.eval_batch_size,
        args.precision,
        args.original_ids,
        args.original_errors,
        args.progress,
    )
    if results and args.progress:
        print(retrieval_table(results))
    return 0 if args.original_errors or all(scores["success"] for scores in results.values()) else 1


def _predict_zero_shot(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.dual_commands import predict_zero_shot

    predict_zero_shot(
        args.model,
        args.classes,
        args.out,
        args.images,
        args.image_features,
        args.labels,
        args.templates,
        args.top,
        args.skip_bad_images,
        args.progress,
    )
    return 0


def _evaluate_dual(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.dual_commands import evaluate_dual_command

    evaluate_dual_command(
        args.out,
        args.model,
        args.image_features,
        args.text_features,
        args.data,
        args.images,
        args.dataset,
        args.data_options,
        args.split,
        args.text_truth,
        args.image_truth,
        args.groups,
        args.protocol,
        args.protocol_options,
        args.metric,
        args.precision,
        args.name,
        args.report,
        args.skip_bad_images,
        args.progress,
    )
    return 0


def _evaluate_leaderboard(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.dual_commands import evaluate_leaderboard

    evaluate_leaderboard(
        args.model,
        args.catalogue,
        args.out,
        args.table,
        args.images,
        args.text,
        args.category,
        args.sub_category,
        args.name,
        args.dataset_name,
        args.skip_bad_images,
        args.progress,
    )
    return 0


def _search(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.training.commands import search_folder

    print(
        search_folder(
            args.model,
            args.gallery,
            args.index,
            args.photo,
            args.text,
            args.top,
            args.sheet,
            args.skip_bad_images,
            args.progress,
            args.then,
            args.memory,
        )
    )
    return 0


def _export(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.models import DualEncoder
    from tf_fashion.models.base import RetrievalModel, load_as
    from tf_fashion.serving.export import export_composed, export_dual

    model = load_as(args.model, RetrievalModel)
    folder = export_dual(model, args.out) if isinstance(model, DualEncoder) else export_composed(model, args.out)
    print(f"The SavedModel is in {folder}")
    return 0


def _weights_convert(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    from tf_fashion.checkpoints import convert_weights

    report = convert_weights(args.source, args.to, args.out, args.ema)
    print(report.format(limit=None if args.everything else 8))
    use = "train dual --clip SIZES.json" if args.to == "clip" else f"--backbone {args.to}"
    print(f"The weights are in {args.out}. Use them with: {use} --weights {args.out}")
    return 0


def _weights_list(args: argparse.Namespace) -> int:
    manifest = Path(__file__).resolve().parent.parent / "pretrained" / "manifest.json"
    path = Path(args.manifest) if args.manifest else manifest
    if not args.manifest and not manifest.is_file():
        path = Path("pretrained/manifest.json")
        if not path.is_file():
            raise UsageError("pretrained/manifest.json is not part of this installation. Name the file with --manifest FILE.")
    entries = read_json(path)
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise DataError(f"{path}: expected a JSON object of objects (name -> source, licence, sha256, use).")
    for name, entry in entries.items():
        print(name)
        for key, value in entry.items():
            if key == "sha256" and value is None:
                value = "not verified"
            print(f"  {key}: {', '.join(map(str, value)) if isinstance(value, list) else value}")
    return 0


def _concepts_mine(args: argparse.Namespace) -> int:
    from tf_fashion.datasets.concept_mining import mine_concepts, read_captions, write_mined
    from tf_fashion.datasets.concepts import ConceptVocabulary, vocabulary_summary

    records = read_captions(args.source, args.column, args.split)
    kb = ConceptVocabulary.read(Path(args.kb)) if args.kb else None
    texts = (record.text for record in records)
    mined = mine_concepts(texts, args.tagger, args.min_count, args.max_words, args.max_concepts, kb, args.progress)
    written = write_mined(args.out, records, mined, args.name)
    found = vocabulary_summary(mined.vocabulary)
    covered = sum(bool(phrases) for phrases in mined.phrases)
    print(f"{found['concepts']} concepts, {found['with_father']} with a father, in {covered} of {len(records)} texts. Written:")
    print("\n".join(f"  {path}" for path in written))
    if len(written) < 3:
        print("The texts are not written, as some do not say which picture they belong to (item_ids, or a column id).")
    return 0


def _list(args: argparse.Namespace) -> int:
    if args.kind == "protocols":
        from tf_fashion.retrieval.dual_protocol import DUAL_PROTOCOLS
        from tf_fashion.retrieval.protocol import PROTOCOLS

        print("\n".join(PROTOCOLS.get(name).describe() for name in PROTOCOLS))
        print("\n".join(DUAL_PROTOCOLS.get(name).describe() for name in DUAL_PROTOCOLS))
        return 0
    if args.kind == "presets":
        from tf_fashion.training.presets import DUAL_PRESETS, PRESETS

        for verb, presets in (("composed", PRESETS), ("dual", DUAL_PRESETS)):
            print(f"train {verb}:")
            for name, values in presets.items():
                print(f"  {name}: " + ", ".join(f"{key}={value}" for key, value in values.items()))
        return 0
    import importlib

    if args.kind != "datasets":
        import_tensorflow_quietly()
    places = {
        "backbones": ("encoders.image", "BACKBONES"),
        "composers": ("composers", "COMPOSERS"),
        "datasets": ("datasets", "DATASETS"),
        "losses": ("losses", "LOSSES"),
        "text-encoders": ("encoders.text", "TEXT_ENCODERS"),
    }
    module, registry = places[args.kind]
    print("\n".join(getattr(importlib.import_module(f"tf_fashion.{module}"), registry)))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    args = build_parser().parse_args(argv)
    return run_and_explain(args.run, args)


def run_and_explain(command: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Runs a command; turns errors into one readable message and an exit code."""
    try:
        return int(command(args))
    except TfFashionError as error:
        print(f"tf-fashion: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("tf-fashion: interrupted. The same command continues where it can.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            print(
                f"tf-fashion: the disk is full ({error.filename or 'while writing'}). Free some space and run the same command again.",
                file=sys.stderr,
            )
            return 1
        if error.filename and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
            print(f"tf-fashion: {error.filename}: {error.strerror}", file=sys.stderr)
            return 1
        raise


if __name__ == "__main__":
    sys.exit(main())
