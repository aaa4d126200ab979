"""VAL: attention modules, text encoders and the matching loss."""

from __future__ import annotations

import re

import numpy as np
import tensorflow as tf

from tests.parity.harness import Fixture, checks
from tf_fashion.encoders.text import TEXT_ENCODERS
from tf_fashion.layers import VisiolinguisticAttention
from tf_fashion.losses.matching import BidirectionalMatching

# Rectifier, decay and epsilon of the batch normalisations that go with a backbone.
SCHEMES = {"mobilenet": ("relu6", 0.9997, 1e-3), "resnet": ("relu", 0.997, 1e-5)}


def scheme(name: str) -> tuple[str, float, float]:
    return next(values for backbone, values in SCHEMES.items() if backbone in name)


class Weights:
    """Pairs (original name, our tensor to set, from the original's array, back to it) of one part of a model."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, object, object, object]] = []

    def add(self, name, variable, convert=np.asarray, back=np.asarray) -> None:
        self.entries.append((name, variable, convert, back))

    def norm(self, name: str, layer) -> None:
        for theirs, ours in (("gamma", "gamma"), ("beta", "beta"), ("moving_mean",) * 2, ("moving_variance",) * 2):
            self.add(f"{name}/BatchNorm/{theirs}", getattr(layer, ours))

    def conv1x1(self, name: str, layer) -> None:
        self.add(f"{name}/weights", layer.kernel, lambda w: w[0, 0], lambda w: w[None, None])

    def load(self, weights) -> None:
        for name, variable, convert, _ in self.entries:
            variable.assign(convert(weights[name]))

    def trained(self):
        return [entry for entry in self.entries if "moving_" not in entry[0]]

    def moving(self):
        return [entry for entry in self.entries if "moving_" in entry[0]]


def attention_weights(layer: VisiolinguisticAttention, scope: str) -> tuple[Weights, list[str]]:
    """The module's weights, and the names of its six dense maps (which one of our variables holds together)."""
    weights = Weights()
    for name, part in (("Conv", "join"), ("Conv_1", "channel"), ("Conv_3", "out")):
        weights.conv1x1(f"{scope}/{name}", getattr(layer, part))
        weights.norm(f"{scope}/{name}", getattr(layer, f"{part}_norm"))
    weights.add(f"{scope}/Conv_2/weights", layer.spatial.kernel)
    weights.norm(f"{scope}/Conv_2", layer.spatial_norm)
    weights.add(f"{scope}/r_weight", layer.joint_weight)
    weights.add(f"{scope}/weight", layer.self_weight)
    return weights, [f"{scope}/dense{'' if i == 0 else f'_{i}'}/kernel" for i in range(6)]


def set_attention_maps(layer: VisiolinguisticAttention, names: list[str], weights) -> None:
    maps = [weights[name] for name in names]
    layer.attention_maps.assign(np.stack([np.concatenate(maps[:3], axis=1), np.concatenate(maps[3:], axis=1)]))


def split_maps(value: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """Our (2, d, 3d) array as the six arrays of the original."""
    d = value.shape[1]
    return {name: value[i // 3, :, (i % 3) * d : (i % 3 + 1) * d] for i, name in enumerate(names)}


def gradient_tolerance(recorded: np.ndarray) -> dict[str, float]:
    return {"rtol": 0.0, "atol": 1e-3 * max(float(np.abs(recorded).max()), 1e-6)}


def unbiased(ours: np.ndarray, before: np.ndarray, decay: float, rows: int) -> np.ndarray:
    """Moving variance after one update with n - 1 in place of n, as the original's fused normalisation has it."""
    return before * decay + (ours - before * decay) * rows / (rows - 1)


@checks(r"attention_.+_\d+x\d+x\d+\.npz")
def attention(fixture: Fixture) -> None:
    activation, momentum, epsilon = scheme(fixture.name)
    weights = fixture.inputs_below("w/")
    images, texts = fixture.input("images"), fixture.input("texts")
    layer = VisiolinguisticAttention(activation, attention_dropout=0.0, norm_momentum=momentum, norm_epsilon=epsilon, name="attention")
    layer.build(images.shape, texts.shape)
    scope = next(iter(weights)).split("/")[0]
    entries, dense = attention_weights(layer, scope)
    entries.load(weights)
    set_attention_maps(layer, dense, weights)
    kernels = [layer.join.kernel, layer.channel.kernel, layer.spatial.kernel, layer.out.kernel]
    fixture.compare("regularization_sum_wd4e-5", sum(2e-5 * np.sum(np.square(k.numpy())) for k in kernels), rtol=1e-5)
    names = [f"{scope}/{name}/kernel/Regularizer/l2_regularizer:0" for name in ("Conv", "Conv_1", "Conv_2", "Conv_3")]
    fixture.exact("regularized_weights", names)
    keys = {"output": "output", "fused": "vl_features", "channel_gate": "att_ch_preact", "spatial_gate": "att_sp_preact"}
    keys |= {"heads": "self_att_heads", "self_attention": "self_att"}
    rows = {"Conv": images[..., 0].size, "Conv_1": len(images), "Conv_2": images[..., 0].size, "Conv_3": images[..., 0].size}
    for mode in ("eval", "train"):
        tolerance = {"rtol": 0.0, "atol": 2e-5 if mode == "eval" else 1e-3}
        x, t = tf.constant(images), tf.constant(texts)
        trained = entries.trained()
        with tf.GradientTape() as tape:
            tape.watch([x, t])
            parts = layer.parts(x, t, training=mode == "train")
            total = tf.reduce_sum(parts["output"] * fixture.input("cotangent"))
        gradients = tape.gradient(total, [x, t, layer.attention_maps.value, *(v.value for _, v, _, _ in trained)])
        for ours, theirs in keys.items():
            fixture.compare(f"{mode}/{theirs}", parts[ours], **tolerance)
        for head, matrix in enumerate(parts["attention"]):
            fixture.compare(f"{mode}/att_matrix_head{head}", matrix, **tolerance)
        found = {"images": gradients[0].numpy(), "texts": gradients[1].numpy()}
        found |= split_maps(gradients[2].numpy(), dense)
        found |= {name: back(g.numpy()) for (name, _, _, back), g in zip(trained, gradients[3:], strict=True)}
        for name, gradient in found.items():
            fixture.compare(f"{mode}/grad/{name}", gradient, **gradient_tolerance(fixture.data[f"{mode}/grad/{name}"]))
    for name, variable, _, _ in entries.moving():
        value = variable.numpy()
        if name.endswith("moving_variance"):
            value = unbiased(value, weights[name], momentum, rows[name.split("/")[1]])
        fixture.compare(f"train/updated/{name}", value, rtol=1e-4, atol=1e-5)


def text_weights(encoder, names) -> Weights:
    """Weights of a text encoder with its projection; `names` are the original's."""
    weights = Weights()
    weights.add("RNN/token_embedding_weights", encoder.embedding.embeddings)
    stack = encoder.stacks[0]
    for direction, layers, states in (
        ("forward", stack.forward_layers, stack.forward_states),
        ("backward", stack.backward_layers, stack.backward_states),
    ):
        if not layers:
            continue
        prefix = f"RNN/bidirectional_lstm/{direction}/init_state_"
        # LSTM states are stored c before h, ours h before c.
        for suffix, state in zip(["None"] if len(states[0]) == 1 else ["1", "0"], states[0], strict=True):
            weights.add(prefix + suffix, state)
        short = {"forward": "fw", "backward": "bw"}[direction]
        cell = next(n for n in names if re.search(rf"(rnn/|{short}/)(basic_lstm|gru)_cell/", n) and (f"/{short}/" in n or "/rnn/" in n))
        cell = re.match(r".*?(basic_lstm|gru)_cell", cell)[0]
        (lstm_weights if stack.cell == "lstm" else gru_weights)(weights, layers[0], cell)
    weights.conv1x1("projection/text", encoder.head_dense)
    weights.norm("projection/text", encoder.head_norm)
    return weights


class _Rows:
    """A kernel whose upper rows are one of our variables and whose lower rows are another."""

    def __init__(self, parts, join, split) -> None:
        self.parts, self.join, self.split = parts, join, split

    def assign(self, value) -> None:
        for variable, part in zip(self.parts, self.split(value), strict=True):
            variable.assign(part)

    def numpy(self):
        return self.join([v.numpy() for v in self.parts])


def lstm_weights(weights: Weights, layer, cell: str) -> None:
    width = layer.cell.kernel.shape[0]

    def order(x):
        i, j, f, o = np.split(x, 4, axis=-1)
        return np.concatenate([i, f, j, o], axis=-1)

    # The swap of two gates is its own inverse.
    rows = _Rows(
        [layer.cell.kernel, layer.cell.recurrent_kernel],
        lambda parts: order(np.concatenate(parts)),
        lambda value: [order(value)[:width], order(value)[width:]],
    )
    weights.add(f"{cell}/kernel", rows)
    forget = np.concatenate([np.full(n, v, np.float32) for n, v in zip([layer.units] * 4, (0, 1, 0, 0), strict=True)])
    weights.add(f"{cell}/bias", layer.cell.bias, lambda b: order(b) + forget, order)


def gru_weights(weights: Weights, layer, cell: str) -> None:
    width, units = layer.cell.kernel.shape[0], layer.units
    kernel, recurrent, bias = layer.cell.kernel, layer.cell.recurrent_kernel, layer.cell.bias

    class Gates(_Rows):
        """Columns r, u of the original are z (= u), r here; the candidate's columns come last."""

    def set_gates(value):
        r, u = np.split(value, 2, axis=1)
        for variable, rows in ((kernel, slice(None, width)), (recurrent, slice(width, None))):
            new = variable.numpy()
            new[:, :units], new[:, units : 2 * units] = u[rows], r[rows]
            variable.assign(new)

    def get_gates(values):
        joined = np.concatenate(values)
        return np.concatenate([joined[:, units : 2 * units], joined[:, :units]], axis=1)

    def set_candidate(value):
        for variable, rows in ((kernel, slice(None, width)), (recurrent, slice(width, None))):
            new = variable.numpy()
            new[:, 2 * units :] = value[rows]
            variable.assign(new)

    def set_bias(value, columns, swap):
        new = bias.numpy()
        new[columns] = np.concatenate(np.split(value, 2)[::-1]) if swap else value
        bias.assign(new)

    class Part:
        def __init__(self, parts, setter, getter) -> None:
            self.parts, self.assign, self.join = parts, setter, getter

    both = [kernel, recurrent]
    weights.add(f"{cell}/gates/kernel", Part(both, set_gates, get_gates))
    weights.add(f"{cell}/candidate/kernel", Part(both, set_candidate, lambda v: np.concatenate(v)[:, 2 * units :]))
    gates = slice(None, 2 * units)
    weights.add(
        f"{cell}/gates/bias",
        Part([bias], lambda v: set_bias(v, gates, True), lambda v: np.concatenate(np.split(v[0][gates], 2)[::-1])),
    )
    weights.add(
        f"{cell}/candidate/bias",
        Part([bias], lambda v: set_bias(v, slice(2 * units, None), False), lambda v: v[0][2 * units :]),
    )


def variables_of(variable) -> list:
    return variable.parts if hasattr(variable, "parts") else [variable]


def gradient_of(variable, back, gradients: dict[int, np.ndarray]) -> np.ndarray:
    """The gradient in the original's layout."""
    if hasattr(variable, "parts"):
        return variable.join([gradients[id(v)] for v in variable.parts])
    return back(gradients[id(variable)])


def build_text(names, weights, momentum: float, epsilon: float, legacy: bool):
    """A text encoder of the shapes found in `weights` (or any mapping of names to arrays)."""
    gru, both = any("gru_cell" in n for n in names), any("/bw/" in n for n in names)
    state = next(weights[n] for n in names if "forward/init_state" in n)
    encoder = TEXT_ENCODERS.get(("bi" if both else "") + ("gru" if gru else "lstm"))(
        vocabulary_size=weights["RNN/token_embedding_weights"].shape[0],
        embedding_dim=weights["RNN/token_embedding_weights"].shape[1],
        units=state.shape[0],
        dim=weights["projection/text/weights"].shape[-1],
        pooling="max",
        head="dense_bn",
        initialization="glorot",
        learned_initial_state=True,
        reset_after=False,
        norm_momentum=momentum,
        norm_epsilon=epsilon,
        legacy_pool_padding=legacy,
        name="text_encoder",
    )
    encoder.build((None, None))
    return encoder


@checks(r"text_(bi_)?(lstm|gru)_(mobilenet|resnet).*\.npz")
def text(fixture: Fixture) -> None:
    _, momentum, epsilon = scheme(fixture.name)
    weights = fixture.inputs_below("w/")
    ids, lengths = fixture.input("ids"), fixture.input("lengths")
    encoder = build_text(list(weights), weights, momentum, epsilon, legacy=True)
    entries = text_weights(encoder, list(weights))
    entries.load(weights)
    trained = entries.trained()
    for mode in ("eval", "train"):
        training = mode == "train"
        with tf.GradientTape() as tape:
            out = encoder(ids, lengths, training=training)
            total = tf.reduce_sum(out * fixture.input("cotangent"))
        flat = {id(v): v for _, variable, _, _ in trained for v in variables_of(variable)}
        found = tape.gradient(total, [v.value for v in flat.values()])
        gradients = {key: tf.convert_to_tensor(g).numpy() for key, g in zip(flat, found, strict=True)}
        (steps,), _ = encoder.sequences(ids, lengths, training=False)
        valid = np.arange(ids.shape[1])[None, :] < lengths[:, None]
        steps = steps.numpy() * valid[:, :, None]
        fixture.compare(f"{mode}/rnn_outputs", steps, rtol=0.0, atol=1e-5)
        fixture.compare(f"{mode}/pooled", steps.max(axis=1)[:, None, None], rtol=0.0, atol=1e-5)
        fixture.compare(f"{mode}/output", out, rtol=0.0, atol=1e-3 if training else 1e-5)
        for name, variable, _, back in trained:
            key = f"{mode}/grad/{name}"
            fixture.compare(key, gradient_of(variable, back, gradients), **gradient_tolerance(fixture.data[key]))
        if training:
            for name, variable, _, _ in entries.moving():
                value = variable.numpy()
                if name.endswith("variance"):
                    value = unbiased(value, weights[name], momentum, len(ids))
                fixture.compare(f"train/updated/{name}", value, rtol=1e-5, atol=1e-6)
    entries.load(weights)
    correct = build_text(list(weights), weights, momentum, epsilon, legacy=False)
    text_weights(correct, list(weights)).load(weights)
    (steps,), _ = correct.sequences(ids, lengths, training=False)
    outputs = correct(ids, lengths, training=False)
    for row, length in enumerate(lengths):
        if f"eval/unpadded_output/{row}" in fixture:
            pooled = steps[row, :length].numpy().max(axis=0)[None, None, None]
            fixture.compare(f"eval/unpadded_pooled/{row}", pooled, rtol=0.0, atol=1e-5)
            fixture.compare(f"eval/unpadded_output/{row}", outputs[row : row + 1], rtol=0.0, atol=1e-5)


@checks(r"loss\.npz")
def matching_loss(fixture: Fixture) -> None:
    if "case_names" not in fixture:
        return
    for case in fixture.input("case_names"):
        composed, targets = fixture.input(f"{case}/images"), fixture.input(f"{case}/texts")
        labels = np.arange(len(composed))
        for key in list(fixture.data):
            match = re.fullmatch(rf"{case}/m([\d.]+)/(semi|hard)/(static|dynamic)/loss", key)
            if not match:
                continue
            base = key.removesuffix("loss")
            options = {
                "margin": float(match[1]),
                "semi_hard": "column" if match[2] == "semi" else None,
                "legacy_duplicate_negatives": True,
                "legacy_self_mask": match[3] == "dynamic",
            }
            x, y = tf.constant(composed), tf.constant(targets)
            with tf.GradientTape() as tape:
                tape.watch([x, y])
                value = BidirectionalMatching(**options)(labels, {"query": x, "target": y})
            rows = BidirectionalMatching(**options, reduction="none")(labels, {"query": x, "target": y})
            found = {"loss": value, "per_sample": np.reshape(rows, fixture.data[f"{base}per_sample"].shape)}
            if f"{base}grad_images" in fixture:
                found |= dict(zip(("grad_images", "grad_texts"), tape.gradient(value, [x, y]), strict=True))
            for name, ours in found.items():
                if str(case) == "zero_rows" and match[2] == "semi":
                    fixture.not_covered(base + name, "distances are equal up to rounding, which decides the mask")
                    continue
                atol = 1e-4 if name.startswith("grad") else 1e-5
                fixture.compare(base + name, ours, rtol=1e-4 if name.startswith("grad") else 0.0, atol=atol)
