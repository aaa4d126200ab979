"""Matching losses, and losses for several labels per picture. Each sees the whole global batch under `tf.distribute`; a new file in
this folder is found by itself."""

import importlib
import pkgutil

from tf_fashion.losses.base import LOSSES, GlobalBatch, MatchingLoss, all_gather
from tf_fashion.losses.multilabel import MULTILABEL_LOSSES, MultilabelLoss

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["LOSSES", "MULTILABEL_LOSSES", "GlobalBatch", "MatchingLoss", "MultilabelLoss", "all_gather"]
