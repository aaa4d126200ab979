"""`tf-fashion VERB ...`: everything from checking a folder to serving a model. TensorFlow is imported only by verbs that need it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from tf_fashion import __version__
from tf_fashion.cli import attributes, composed, data, dual, street, use
from tf_fashion.cli.attributes import add_attribute_arguments, attribute_config
from tf_fashion.cli.composed import add_training_arguments, training_config
from tf_fashion.cli.dual import add_dual_arguments, dual_config
from tf_fashion.cli.options import EPILOG, Help, add_data_arguments, run_and_explain, verb
from tf_fashion.cli.street import adapt_config, add_adapt_arguments, add_street_arguments, street_config

__all__ = [
    "adapt_config",
    "add_adapt_arguments",
    "add_attribute_arguments",
    "add_data_arguments",
    "add_dual_arguments",
    "add_street_arguments",
    "add_training_arguments",
    "attribute_config",
    "build_parser",
    "dual_config",
    "main",
    "run_and_explain",
    "street_config",
    "training_config",
]


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="tf-fashion",
        description='Find fashion items by photo, by words, by a photo with words ("this one, but red and longer"), and by attributes.',
        epilog="`tf-fashion VERB --help` explains a verb.\n" + EPILOG,
        formatter_class=Help,
    )
    parser.add_argument("--version", action="version", version=f"tf-fashion {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def group(name: str, summary: str, description: str) -> Any:
        return verb(verbs, name, summary, description).add_subparsers(dest="what", metavar="WHAT", required=True)

    datasets = group("data", "check a dataset, draw one, or fetch its pictures", "Look after datasets.")
    data.add_data(datasets)
    attributes.add_fetch(datasets)
    train = group("train", "train a model", "Train a model.")
    composed.add_train(train)
    dual.add_train(train)
    attributes.add_train(train)
    street.add_train(train)
    street.add_adapt(verbs)
    composed.add_tune(group("tune", "search for good settings", "Search for good settings."))
    evaluate = group("evaluate", "measure a model", "Measure a model under a named protocol.")
    composed.add_evaluate(evaluate)
    dual.add_evaluate(evaluate)
    dual.add_leaderboard(evaluate)
    attributes.add_evaluate(evaluate)
    street.add_evaluate(evaluate)
    street.add_compare(group("compare", "put results side by side", "Put results side by side."))
    composed.add_scores(verbs)
    composed.add_ensemble(verbs)
    use.add_embed(verbs)
    predict = group("predict", "write what a model finds", "Write predictions.")
    dual.add_predict(predict)
    attributes.add_predict(predict)
    attributes.add_match(verbs)
    street.add_cluster(verbs)
    use.add_search(verbs)
    use.add_export(verbs)
    data.add_weights(verbs)
    dual.add_concepts(verbs)
    data.add_list(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    args = build_parser().parse_args(argv)
    return run_and_explain(args.run, args)
