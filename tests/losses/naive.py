"""The losses once more, as plain loops over NumPy rows."""

from __future__ import annotations

import numpy as np


def _log_sum_exp(values) -> float:
    values = np.asarray(values, dtype=np.float64)
    return float(values.max() + np.log(np.exp(values - values.max()).sum()))


def _softplus(x: float) -> float:
    return float(np.logaddexp(0.0, x))


def batch_classification(labels, query, target, mask=True, smoothing=0.0, direction="query_to_target", scale=1.0, share=False) -> float:
    query, target = query.astype(np.float64), target.astype(np.float64)
    if direction == "both":
        ways = ("query_to_target", "target_to_query")
        return float(np.mean([batch_classification(labels, query, target, mask, smoothing, way, scale, share) for way in ways]))
    rows, columns = (query, target) if direction == "query_to_target" else (target, query)
    losses = []
    for i in range(len(rows)):
        competing = [j for j in range(len(columns)) if share or j == i or not (mask and labels[j] == labels[i])]
        right = [j for j in competing if j == i or (share and labels[j] == labels[i])]
        logits = {j: scale * float(rows[i] @ columns[j]) for j in competing}
        wanted = {j: smoothing / len(competing) + (1.0 - smoothing) * (j in right) / len(right) for j in competing}
        lse = _log_sum_exp(list(logits.values()))
        losses.append(sum(wanted[j] * (lse - logits[j]) for j in competing))
    return float(np.mean(losses))


def sigmoid(labels, query, target, bias=0.0, same_label="ignore") -> float:
    losses = []
    for i in range(len(query)):
        losses.append(0.0)
        for j in range(len(target)):
            logit = float(query[i].astype(np.float64) @ target[j].astype(np.float64)) + bias
            if i == j or (labels[i] == labels[j] and same_label == "positive"):
                losses[-1] += _softplus(-logit)
            elif labels[i] != labels[j] or same_label == "negative":
                losses[-1] += _softplus(logit)
    return float(np.mean(losses))


def concept(image, text, prototypes, valid, scale, top=5, keep_negative=False, ids=None) -> float:
    """FashionKLIP's concept loss with padding left out; `ids` for concepts that are not each other's negatives."""
    image, text, prototypes = (x.astype(np.float64) for x in (image, text, prototypes))
    slots = []
    for c in range(text.shape[1]):
        rows = [b for b in range(len(image)) if valid[b, c]]
        values, vectors = np.zeros((len(image), top)), np.zeros((len(image), top, image.shape[1]))
        for b in rows:
            similarities = prototypes[b, c] @ image[b]
            order = np.argsort(-similarities, kind="stable")[:top]
            values[b], vectors[b] = similarities[order], prototypes[b, c, order]
        if not keep_negative:
            values = np.maximum(values, 0.0)
        if len(rows) < 2 or not values.any():
            continue
        norms = np.sqrt((values**2).sum(axis=0))
        weights = np.divide(values, norms, out=np.zeros_like(values), where=norms > 0)
        slot = 0.0
        for r in range(top):
            if not weights[:, r].any():
                continue
            both = 0.0
            there = [b for b in rows if vectors[b, r].any()]
            for b in rows:
                rivals = [k for k in rows if k == b or ids is None or ids[k, c] != ids[b, c]]
                own = scale * float(vectors[b, r] @ text[b, c])
                forth = _log_sum_exp([scale * float(vectors[b, r] @ text[k, c]) for k in rivals]) - own
                back = _log_sum_exp([scale * float(vectors[k, r] @ text[b, c]) for k in rivals if k in there or k == b]) - own
                both += weights[b, r] * (forth + back) / 2
            slot += weights[:, r].sum() / weights.sum() * both / weights[:, r].sum()
        slots.append(slot)
    return float(np.mean(slots)) if slots else 0.0


def _distance(a, b, metric) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    if metric == "l1":
        return float(np.abs(a - b).sum())
    if metric == "angular":
        norms = [max(float(np.sqrt((x * x).sum())), 1e-6) for x in (a, b)]
        return max(1.0 - float(a @ b) / norms[0] / norms[1], 0.0)
    squared = float(((a - b) ** 2).sum())
    return squared if metric == "squared_l2" else squared**0.5


def _members(labels, query, target):
    return np.concatenate([labels, labels]), np.concatenate([query, target])


def batch_hard_triplet(labels, query, target, margin=1.0, metric="squared_l2", soft=False) -> float:
    labels, rows = _members(labels, query, target)
    losses = []
    for i in range(len(rows)):
        positives = [_distance(rows[i], rows[j], metric) for j in range(len(rows)) if labels[j] == labels[i] and j != i]
        negatives = [_distance(rows[i], rows[j], metric) for j in range(len(rows)) if labels[j] != labels[i]]
        if not positives or not negatives:
            losses.append(0.0)
            continue
        gap = max(positives) - min(negatives) + margin
        losses.append(_softplus(gap) if soft else max(gap, 0.0))
    return float(np.mean(losses))


def soft_triplet(labels, query, target) -> float:
    n = len(labels)
    labels, rows = _members(labels, query, target)
    losses = []
    for i in range(2 * n):
        positive = _distance(rows[i], rows[(i + n) % (2 * n)], "squared_l2")
        gaps = [positive - _distance(rows[i], rows[k], "squared_l2") for k in range(2 * n) if labels[k] != labels[i]]
        losses.append(np.mean([_softplus(gap) for gap in gaps]) if gaps else 0.0)
    return float(np.mean(losses))


def triplet_semihard(labels, query, target, margin=1.0, metric="l2") -> float:
    labels, rows = _members(labels, query, target)
    total, pairs = 0.0, 0
    for a in range(len(rows)):
        negatives = [_distance(rows[a], rows[k], metric) for k in range(len(rows)) if labels[k] != labels[a]]
        for p in range(len(rows)):
            if p == a or labels[p] != labels[a]:
                continue
            pairs += 1
            if negatives:
                d = _distance(rows[a], rows[p], metric)
                farther = [n for n in negatives if n > d]
                total += max(d - (min(farther) if farther else max(negatives)) + margin, 0.0)
    return total / pairs if pairs else 0.0


def triplet_hard(labels, query, target, margin=1.0, metric="l2", soft=False) -> float:
    labels, rows = _members(labels, query, target)
    losses = []
    for a in range(len(rows)):
        distances = [_distance(rows[a], row, metric) if k != a else 0.0 for k, row in enumerate(rows)]
        negatives = [d for d, label in zip(distances, labels, strict=True) if label != labels[a]]
        if not negatives:
            losses.append(0.0)
            continue
        gap = max(d for d, label in zip(distances, labels, strict=True) if label == labels[a]) - min(negatives)
        losses.append(_softplus(gap) if soft else max(gap + margin, 0.0))
    return float(np.mean(losses))


def lifted_structure(labels, query, target, margin=1.0) -> float:
    labels, rows = _members(labels, query, target)
    total, pairs = 0.0, 0
    for i in range(len(rows)):
        for j in range(len(rows)):
            if i == j or labels[i] != labels[j]:
                continue
            pairs += 1
            pushes = [margin - _distance(rows[a], rows[k], "l2") for a in (i, j) for k in range(len(rows)) if labels[k] != labels[a]]
            if pushes:
                total += max(_log_sum_exp(pushes) + _distance(rows[i], rows[j], "l2"), 0.0) ** 2
    return total / (2 * pairs) if pairs else 0.0


def npairs(labels, query, target) -> float:
    losses = []
    for i in range(len(query)):
        logits = [float(query[i].astype(np.float64) @ row.astype(np.float64)) for row in target]
        lse = _log_sum_exp(logits)
        same = [j for j in range(len(target)) if labels[j] == labels[i]]
        losses.append(np.mean([lse - logits[j] for j in same]))
    return float(np.mean(losses))


def contrastive(labels, query, target, margin=1.0) -> float:
    terms = []
    for i in range(len(query)):
        for j in range(len(target)):
            d = _distance(query[i], target[j], "l2")
            terms.append(d**2 if labels[i] == labels[j] else max(margin - d, 0.0) ** 2)
    return float(np.mean(terms))


def match_embedding(embeddings, query, target) -> float:
    terms = []
    for e, q, t in zip(embeddings, query, target, strict=True):
        if not e.any():
            continue

        def cosine(x, e=e):
            return float(x @ e) / max(float(np.linalg.norm(x)), 1e-8) / float(np.linalg.norm(e))

        terms.append(1.0 - (cosine(q) + cosine(t)) / 2)
    return float(np.mean(terms)) if terms else 0.0


def bidirectional_matching(labels, query, target, margin=0.2, semi_hard="row", duplicates=False) -> float:
    unit = [
        x.astype(np.float64) / np.maximum(np.sqrt((x.astype(np.float64) ** 2).sum(-1, keepdims=True)), 1e-5) for x in (query, target)
    ]
    total = 0.0
    for rows, columns in (unit, unit[::-1]):
        n = len(rows)
        own = [float(((rows[i] - columns[i]) ** 2).sum()) for i in range(n)]
        for i in range(n):
            wrong = [j for j in range(n) if j != i and (duplicates or labels[j] != labels[i])]
            distances = {j: float(((rows[i] - columns[j]) ** 2).sum()) for j in wrong}
            if semi_hard is not None:
                distances = {j: d for j, d in distances.items() if d >= (own[i] if semi_hard == "row" else own[j])}
            if distances:
                total += max(own[i] - min(distances.values()) + margin, 0.0) / n
    return total


def mined_triplet(labels, query, target, margin=0.3, epsilon=None, average_all=False):
    """Batch-hard triplets, or with `epsilon` all triplets of the pairs that the multi-similarity miner keeps."""
    x = np.concatenate([query, target]).astype(np.float64)
    labels = np.concatenate([labels, labels])
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)
    losses = []
    for i in range(len(x)):
        positives = [j for j in range(len(x)) if labels[j] == labels[i] and j != i]
        negatives = [j for j in range(len(x)) if labels[j] != labels[i]]
        if not positives or not negatives:
            continue
        if epsilon is None:
            positives = [max(positives, key=lambda j, i=i: np.linalg.norm(x[i] - x[j]))]
            negatives = [min(negatives, key=lambda j, i=i: np.linalg.norm(x[i] - x[j]))]
        else:
            least, most = min(x[i] @ x[j] for j in positives), max(x[i] @ x[j] for j in negatives)
            positives = [j for j in positives if x[i] @ x[j] - epsilon < most]
            negatives = [j for j in negatives if x[i] @ x[j] + epsilon > least]
        for j in positives:
            for k in negatives:
                near, far = (np.linalg.norm(x[i] - x[other] + 1e-6) for other in (j, k))
                losses.append(max(0.0, near - far + margin))
    counted = len(losses) if average_all else sum(value > 0 for value in losses)
    return sum(losses) / counted if counted else 0.0


def supervised_contrastive(labels, query, target, temperature=0.2):
    x, labels = np.concatenate([query, target]).astype(np.float64), np.concatenate([labels, labels])
    return supervised_contrastive_of_set(labels, x, np.ones(len(x)), temperature)


def supervised_contrastive_of_set(labels, x, weights, temperature=0.2):
    """The mean over one labelled set, positives with their weights in numerator and denominator."""
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)
    losses, factors = [], []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        positives = [j for j in others if labels[j] == labels[i] and weights[j] > 0]
        if not positives or not weights[i] > 0:
            continue
        counts = [float(weights[j]) if labels[j] == labels[i] else 1.0 for j in others]
        total = np.log(sum(count * np.exp(x[i] @ x[j] / temperature) for count, j in zip(counts, others, strict=True)))
        losses.append(np.average([total - x[i] @ x[j] / temperature for j in positives], weights=weights[positives]))
        factors.append(weights[i])
    return float(np.average(losses, weights=factors)) if losses else 0.0
