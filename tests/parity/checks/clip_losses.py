"""FashionKLIP's losses, its choice of prototypes and its learning rates."""

from __future__ import annotations

import re

import numpy as np
import tensorflow as tf

from tests.parity.harness import Fixture, checks
from tf_fashion.losses import LOSSES
from tf_fashion.losses.concept import ConceptLoss, weigh_losses
from tf_fashion.retrieval.prototypes import ConceptPrototypes, nearest_images, select_prototypes
from tf_fashion.training.schedules import WarmupCosine

INPUTS = ("image", "text", "concept", "logit_scale")
FORMULAS = {
    "out": ConceptLoss(keep_negative=True, original_padding=True, original_transposed=True),
    "out_fixed_index": ConceptLoss(keep_negative=True, original_padding=True),
}


def _unit(x: tf.Tensor) -> tf.Tensor:
    return x / tf.norm(x, axis=-1, keepdims=True)


def _step(concept_loss: ConceptLoss, chunk: int | None, prototypes: np.ndarray, *inputs: np.ndarray) -> dict[str, np.ndarray]:
    """All values and gradients of one batch under the names of the recording."""
    concept_loss = ConceptLoss(**{**concept_loss.get_config(), "chunk_size": chunk})
    contrast = LOSSES.get("batch_classification")(directions="both", chunk_size=chunk)
    tensors = [tf.constant(x, tf.float32) for x in inputs]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(tensors)
        image, text, concept = (_unit(x) for x in tensors[:3])
        scale = tf.exp(tensors[3])
        contrastive = contrast(np.arange(len(image)), {"query": scale * image, "target": text})
        losses = {"contrastive": contrastive, "concept": concept_loss(image, concept, prototypes, scale=scale)}
        losses["total"], weight = weigh_losses(losses["contrastive"], losses["concept"], "original")
    values = {f"{name}_loss": loss.numpy() for name, loss in losses.items()}
    values |= {"concept_weight": weight.numpy(), "contrast_weight": 1.0 - weight.numpy()}
    for name, loss in losses.items():
        gradients = tape.gradient(loss, tensors, unconnected_gradients="zero")
        values |= {f"grad_{name}/{what}": x.numpy() for what, x in zip(INPUTS, gradients, strict=True)}
    return values


@checks(r"concept_losses\.npz")
def concept_losses(fixture: Fixture) -> None:
    scale = fixture.input("log_logit_scale")
    cases = sorted({key.split("/")[0] for key in fixture.data if "/in/" in key})

    def compare(prefix: str, ours: dict[str, np.ndarray], rows: slice = slice(None), note: str = "") -> None:
        for key in fixture.data:
            if key.startswith(prefix):
                name = key[len(prefix) :]
                value = ours[name][rows] if ours[name].ndim else ours[name]
                relative, absolute = (0.0, 1e-5) if name.startswith("grad_") else (1e-5, 1e-6)
                fixture.compare(key, value, relative, absolute, note)

    for case in cases:
        inputs = fixture.inputs_below(f"{case}/in/")
        arrays = [inputs[name] for name in INPUTS[:3]]
        # Chunks are slow outside a graph, and the same code in every case.
        for chunk in (None, 4) if case == cases[0] else (None,):
            note = "" if chunk is None else f"chunks of {chunk}"
            for formula, loss in FORMULAS.items():
                ours = _step(loss, chunk, inputs["concept_images"], *arrays, scale)
                compare(f"{case}/{formula}/", ours, note=note)
                if case == "positive" and formula == "out":
                    whole = ours
    ranks = sorted({key.split("/")[1] for key in fixture.data if key.startswith("world2/")})
    first = 0
    for rank in ranks:
        count = len(fixture.data[f"world2/{rank}/grad_total/image"])
        compare(f"world2/{rank}/", whole, slice(first, first + count), "rows of the whole batch")
        first += count
    _plain(fixture, whole)
    _prototypes(fixture)


def _plain(fixture: Fixture, whole: dict[str, np.ndarray]) -> None:
    fixture.compare("plain/loss", whole["contrastive_loss"])
    fixture.compare("plain/grad_image", whole["grad_contrastive/image"], 0.0, 1e-5)
    fixture.compare("plain/grad_logit_scale", whole["grad_contrastive/logit_scale"], 0.0, 1e-5)


def _prototypes(fixture: Fixture) -> None:
    given = {key: fixture.input(f"mmr/{key}") for key in ("image_ids", "image_feats", "concept_ids", "concept_feats")}
    nearest, _ = nearest_images(given["concept_feats"], given["image_feats"], fixture.data["mmr/top20_ids"].shape[1])
    fixture.exact("mmr/top20_ids", given["image_ids"][nearest])
    candidates, count = (fixture.data[f"mmr/{key}"].shape[1] for key in ("top20_ids", "selected10_ids"))
    chosen = select_prototypes(given["concept_feats"], given["image_feats"], count, candidates)
    fixture.exact("mmr/selected10_ids", given["image_ids"][chosen])
    table = ConceptPrototypes(given["concept_ids"], given["image_feats"].shape[1], count)
    table.update(given["concept_feats"], given["image_feats"], candidates)
    fixture.compare("gather/concept_images", table.gather(fixture.input("gather/ids")), 0.0, 1e-7)


@checks(r"scheduler\.npz")
def scheduler(fixture: Fixture) -> None:
    for key in fixture.data:
        if match := re.fullmatch(r"(\d+)/params_lr_warmup_total", key):
            rate, warmup, total = fixture.input(key)
            schedule = WarmupCosine(float(rate), int(total), warmup_steps=int(warmup))
            steps = fixture.input(f"{match[1]}/steps")
            fixture.compare(f"{match[1]}/lr", schedule.rates(steps), rtol=1e-12, atol=0.0)
            fixture.compare(f"{match[1]}/lr", [schedule(step) for step in steps], rtol=1e-6, atol=1e-12, note="float32")
