"""CLIP's towers, their gradients, steps of the optimizer, and the checkpoints that lie beside them."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tests.parity.harness import Fixture, checks
from tf_fashion.checkpoints.clip import build_clip, clip_variables, clip_weights, fill_clip, infer_config, read_clip
from tf_fashion.encoders.clip import CLIPConfig, CLIPImageEncoder, CLIPTextEncoder
from tf_fashion.losses import LOSSES
from tf_fashion.models.dual import DualEncoder
from tf_fashion.training.optimizers import GroupedAdamW
from tf_fashion.training.schedules import WarmupCosine

MEAN = np.float64([0.48145466, 0.4578275, 0.40821073])
DEVIATION = np.float64([0.26862954, 0.26130258, 0.27577711])
LATER = "Adam amplifies rounding"

Arrays = dict[str, np.ndarray]


def _pixels(scaled: np.ndarray) -> np.ndarray:
    """Pictures in 0..255 that become these when scaled."""
    return ((scaled.astype(np.float64).transpose(0, 2, 3, 1) * DEVIATION + MEAN) * 255).astype(np.float32)


def _model(config: CLIPConfig, weights: Arrays) -> DualEncoder:
    image, text = CLIPImageEncoder(config), CLIPTextEncoder(config)
    fill_clip(weights, image, text)
    model = DualEncoder(image, text)
    model.logit_scale.assign(weights["logit_scale"])
    return model


def _named(model: DualEncoder, values: dict[int, np.ndarray]) -> Arrays:
    """Arrays by the identity of our variables -> under OpenAI's names and in its layout."""
    found = {
        name: give([values[id(variable)] for variable in variables])
        for name, (variables, give) in clip_variables(model.image_encoder, model.text_encoder).items()
    }
    return {**found, "logit_scale": values[id(model.logit_scale)]}


def _loss(model: DualEncoder, inputs: dict[str, np.ndarray]) -> tf.Tensor:
    return model.objective(tf.range(len(inputs["text"])), model(inputs, training=True))


@checks(r"clip_tiny\.npz")
def towers(fixture: Fixture) -> None:
    """Features and everything on the way to them, the contrastive loss and its gradients."""
    config = CLIPConfig.of(json.loads(str(fixture.input("config_json"))))
    weights = fixture.inputs_below("w/")
    images, token_ids = _pixels(fixture.input("images_nchw")), fixture.input("token_ids")
    model = _model(config, weights)
    close = {"rtol": 0.0, "atol": 5e-5}

    def compare_states(tower: str, states: dict[str, tf.Tensor], names: dict[str, Callable[[np.ndarray], np.ndarray]]) -> None:
        for key in sorted(fixture.data):
            if not key.startswith(f"mid/{tower}/"):
                continue
            name = key.rsplit("/", 1)[1]
            ours, change = (states[name], np.asarray) if name in states else names[name]
            fixture.compare(key, change(np.asarray(ours))[: len(fixture.data[key])], **close)

    states = model.image_encoder.hidden_states(images)
    renamed = {"patch_conv_nchw": (states["patches"], lambda x: x.transpose(0, 3, 1, 2)), "ln_post_cls": (states["pooled"], np.asarray)}
    compare_states("vision", states, renamed)
    untrimmed = CLIPTextEncoder(config, trim_padding=False)
    fill_clip(weights, None, untrimmed)
    compare_states("text", untrimmed.hidden_states(token_ids), {})

    fixture.compare("image_features", model.image_encoder.encode(images), **close)
    fixture.compare("text_features", untrimmed(token_ids), note="with padding", **close)
    fixture.compare("text_features", model.text_encoder(token_ids), note="padding trimmed", **close)
    inputs = {"image": images, "text": token_ids}
    outputs = model(inputs)
    fixture.compare("image_features_norm", outputs["image"], **close)
    fixture.compare("text_features_norm", outputs["text"], **close)
    fixture.compare("logit_scale_exp", model.scale())
    logits = model.scale() * tf.matmul(outputs["image"], outputs["text"], transpose_b=True)
    fixture.compare("logits_per_image", logits, **close)

    model.compile(loss=LOSSES.get("batch_classification")(directions="both"))
    with tf.GradientTape() as tape:
        loss = _loss(model, inputs)
    fixture.compare("contrastive_loss", loss, rtol=0.0, atol=1e-5)
    variables = model.trainable_variables
    found = tape.gradient(loss, [variable.value for variable in variables])
    values = {id(v): np.asarray(tf.convert_to_tensor(g)) for v, g in zip(variables, found, strict=True)}
    for name, gradient in _named(model, values).items():
        fixture.compare(f"gradnorm/{name}", np.linalg.norm(gradient), rtol=1e-4, atol=1e-7)
        if f"grad/{name}" in fixture:
            biggest = float(np.abs(fixture.data[f"grad/{name}"]).max())
            fixture.compare(f"grad/{name}", gradient, rtol=1e-4, atol=max(1e-6, 1e-4 * biggest))

    inferred = _model(infer_config(weights), weights)
    fixture.compare("inferred_heads/image_features", inferred.image_encoder.encode(images), **close)
    fixture.compare("inferred_heads/text_features", inferred.text_encoder(token_ids), **close)


@checks(r"clip_tiny\.npz")
def optimizer_steps(fixture: Fixture) -> None:
    """AdamW on one batch, with the original's groups and schedule, and the scale's bounds."""
    config = CLIPConfig.of(json.loads(str(fixture.input("config_json"))))
    weights = fixture.inputs_below("w/")
    inputs = {"image": _pixels(fixture.input("images_nchw")), "text": fixture.input("token_ids")}
    options = json.loads(str(fixture.input("optim/hparams_json")))
    model = _model(config, weights)
    steps = len(fixture.data["optim/loss"])
    rate = WarmupCosine(options["lr"], options["total_steps"], options["warmup"] / options["total_steps"])
    fixture.compare("optim/lr", [rate(step) for step in range(steps)], rtol=1e-6, atol=1e-12)
    optimizer = GroupedAdamW(rate, options["wd"], options["beta1"], options["beta2"], options["eps"])
    model.compile(optimizer, LOSSES.get("batch_classification")(directions="both"))
    decays = dict(zip(map(id, model.trainable_variables), optimizer._decays, strict=True))
    towers = clip_variables(model.image_encoder, model.text_encoder)
    decayed = {name: {bool(decays[id(variable)]) for variable in variables} for name, (variables, _) in towers.items()}
    decayed["logit_scale"] = {bool(decays[id(model.logit_scale)])}
    for key, wanted in (("optim/decay_names", {True}), ("optim/no_decay_names", {False})):
        ours, recorded = sorted(name for name, found in decayed.items() if found == wanted), sorted(map(str, fixture.input(key)))
        fixture.equal(f"{key} (sorted)", ours, recorded)

    losses, scales = [], []
    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = _loss(model, inputs)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, [variable.value for variable in variables]), variables)
        losses.append(float(loss))
        scales.append(float(model.logit_scale))
    recorded = fixture.data["optim/loss"]
    fixture.compare("optim/loss", losses, rtol=0.0, atol=1e-4)
    fixture.close("optim/loss (first)", losses[0], recorded[0], rtol=0.0, atol=1e-5)
    fixture.compare("optim/logit_scale_after", scales, rtol=0.0, atol=1e-5)
    final = clip_weights(model.image_encoder, model.text_encoder, float(model.logit_scale))
    # A gradient that is zero but for rounding, as the keys' biases have it, still makes steps of the full length.
    loose = 2.0 * float(np.sum(fixture.data["optim/lr"]))
    for name, value in final.items():
        norm, key = f"optim/finalnorm/{name}", f"optim/final/{name}"
        keys = name.endswith("in_proj_bias")
        if norm in fixture:
            atol = loose * (value.size / 3) ** 0.5 if keys else 1e-4
            fixture.compare(norm, np.linalg.norm(value), rtol=1e-3, atol=atol, note=LATER)
        if key in fixture and keys:
            third = np.repeat(["queries", "keys", "values"], value.size // 3)
            for part in ("queries", "keys", "values"):
                atol = loose if part == "keys" else 1e-4
                fixture.close(f"{key} ({part})", value[third == part], fixture.input(key)[third == part], 1e-3, atol, LATER)
        elif key in fixture:
            fixture.compare(key, value, rtol=1e-3, atol=1e-4, note=LATER)


@checks(r"clip_tiny\.npz")
def checkpoints(fixture: Fixture) -> None:
    """The three files beside hold the same weights."""
    weights = fixture.inputs_below("w/")
    for path in sorted(fixture.folder.glob("tiny_*.pt")):
        found = read_clip(path)
        fixture.equal(f"{path.name} (names)", sorted(found), sorted(weights))
        wrong = [name for name, value in weights.items() if not np.array_equal(found.get(name), value.astype(np.float32))]
        fixture.equal(f"{path.name} (values that differ)", wrong, [])
        image, text, scale, _ = build_clip(path)
        features = image.encode(_pixels(fixture.input("images_nchw"))), text(fixture.input("token_ids"))
        for side, ours in zip(("image", "text"), features, strict=True):
            key = f"inferred_heads/{side}_features"
            fixture.close(f"{path.name} {key}", ours, fixture.input(key), rtol=0.0, atol=5e-5)
        fixture.close(f"{path.name} (logit_scale)", scale, float(weights["logit_scale"]))
