"""Label maps and predictions for tests."""

import numpy as np

from tf_fashion.datasets.labels import Label, LabelMap


def label_map() -> LabelMap:
    """Eight labels with gaps in their ids, in three tasks that are not contiguous; one name occurs in two tasks."""
    names = {3: "Bag", 5: "Black", 8: "Dress", 9: "Red", 10: "Shoe", 11: "White", 20: "Bag", 21: "Dot"}
    task_of = {3: 1, 5: 2, 8: 1, 9: 2, 10: 1, 11: 2, 20: 7, 21: 7}
    tasks = {1: "category", 2: "color", 7: "style"}
    return LabelMap([Label(number, name, task_of[number], tasks[task_of[number]]) for number, name in names.items()])


def predictions(records=60, seed=0, unknown=0.0, steps=0, labels=8):
    """Logits that know something about the targets; with `steps`, few different ones."""
    random = np.random.default_rng(seed)
    rates = np.linspace(0.1, 0.6, labels)
    targets = (random.uniform(size=(records, labels)) < rates).astype(np.float32)
    logits = 2.0 * targets - 2.5 + 1.5 * random.normal(size=targets.shape)
    if steps:
        logits = np.round(logits * steps) / steps
    targets[random.uniform(size=targets.shape) < unknown] = -1.0
    return logits.astype(np.float32), targets


def sigmoid(z):
    return 1.0 / (1.0 + np.exp(-np.asarray(z, dtype=np.float64)))
