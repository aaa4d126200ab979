"""torchvision's trunks under generated weights, and the FashionIQ 2020 entry as a whole on one of them."""

from __future__ import annotations

import re
import zlib

import keras
import numpy as np
import tensorflow as tf

from tests.parity.harness import Fixture, checks
from tf_fashion.checkpoints.torch_weights import Slot, entry_slots, fill, trunk_slots, why_unused
from tf_fashion.composers import COMPOSERS
from tf_fashion.encoders.image import ImageEncoder
from tf_fashion.encoders.text import TEXT_ENCODERS
from tf_fashion.encoders.torch_resnet import TORCH_RESNETS, torch_resnet
from tf_fashion.inputs.text import WordTokenizer
from tf_fashion.losses import LOSSES
from tf_fashion.models import ComposedRetriever

MEAN, DEVIATION = np.float64([0.485, 0.456, 0.406]), np.float64([0.229, 0.224, 0.225])


def recipe(name: str, shape: tuple[int, ...], seed: int, basic: bool) -> np.ndarray:
    """Generated weights of a trunk; name and shape as in torchvision's state dictionary."""
    random = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    if name.endswith("running_mean"):
        value = random.standard_normal(shape) * 0.1
    elif name.endswith("running_var"):
        value = random.uniform(0.5, 1.5, shape)
    elif len(shape) == 4:
        value = random.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))
    elif name.endswith("weight"):
        value = random.uniform(0.5, 1.0, shape) * (0.4 if "bn3." in name or (basic and "bn2." in name) else 1.0)
    else:
        value = random.standard_normal(shape) * 0.1
    return value.astype(np.float32)


def _torch_shape(slot: Slot) -> tuple[int, ...]:
    shape = tuple(slot.variable.shape)
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape


def _fill_trunk(network: keras.Model, seed: int, basic: bool) -> dict[str, keras.Variable]:
    """Generated weights into a trunk; returns torchvision's names of its variables."""
    slots = trunk_slots(network)
    fill(slots, {slot.names[0]: recipe(slot.names[0], _torch_shape(slot), seed, basic) for slot in slots}, "recipe", network.name)
    return {slot.names[0]: slot.variable for slot in slots}


def _to_torch(value: np.ndarray) -> np.ndarray:
    return np.transpose(value, (3, 2, 0, 1)) if value.ndim == 4 else np.transpose(value)


def _unbiased(network: keras.Model, name: str, ours: np.ndarray, before: np.ndarray, shape: tuple[int, ...], passes: int) -> np.ndarray:
    """A moving variance with n - 1 in place of n. All passes have equally many values per channel."""
    layer = network.get_layer(name.rsplit(".", 1)[0].replace(".", "_"))
    known = keras.Model(network.input, layer.output).compute_output_shape(shape)
    count = int(np.prod(known[:-1]))
    kept = 0.9**passes * before
    return kept + (ours - kept) * count / (count - 1)


@checks(r"resnet_trunk\.npz")
def resnet_trunk(fixture: Fixture) -> None:
    image, seed = fixture.input("image_nchw").transpose(0, 2, 3, 1), int(fixture.input("seed"))
    for kind in TORCH_RESNETS:
        if f"{kind}.out" in fixture:
            _trunk(fixture, kind, image, seed)


def _trunk(fixture: Fixture, kind: str, image: np.ndarray, seed: int) -> None:
    sizes = TORCH_RESNETS[kind]
    network = torch_resnet(kind, *image.shape[1:3])
    names = _fill_trunk(network, seed, basic=not sizes.bottleneck)
    deep = {"rtol": 5e-4 if sum(sizes.units) > 20 else 1e-4, "atol": 1e-5}
    layers = ["maxpool", "layer1", "layer2", "layer3", "layer4"]
    maps = keras.Model(network.input, [network.get_layer(name).output for name in layers])(image, training=False)
    stem, *stages = [np.asarray(x) for x in maps]
    fixture.compare(f"{kind}.stem_mean", stem.mean(axis=(1, 2)), **deep)
    for number, stage in enumerate(stages, start=1):
        nchw = stage.transpose(0, 3, 1, 2)
        key = f"{kind}.layer{number}"
        fixture.exact(f"{key}_shape", nchw.shape)
        fixture.compare(f"{key}_chanmean", nchw.mean(axis=(2, 3)), **deep)
        # PyTorch's deviation has n - 1 in the denominator.
        fixture.compare(f"{key}_std", nchw.astype(np.float64).std(ddof=1), **deep)
        fixture.compare(f"{key}_first8", nchw[:, : fixture.data[f"{key}_first8"].shape[1]], **deep)
    fixture.compare(f"{kind}.out", stages[-1].mean(axis=(1, 2)), **deep)
    parameters = sum(int(np.prod(v.shape)) for v in network.trainable_variables)
    fixture.exact(f"{kind}.n_params_without_fc", parameters)
    fixture.exact(f"{kind}.n_params_total", parameters + 1000 * (stages[-1].shape[-1] + 1))
    if f"{kind}.out_train" in fixture:
        _trunk_training(fixture, kind, network, names, image)


def _trunk_training(fixture: Fixture, kind: str, network: keras.Model, names: dict, image: np.ndarray) -> None:
    before = {name: variable.numpy() for name, variable in names.items() if "running" in name}
    x = tf.constant(image)
    wanted = {
        "train_dconv1": "conv1.weight",
        "train_dbn1gamma": "bn1.weight",
        "train_dl4c1_first4": "layer4.0.conv1.weight",
        "train_dl4bn1beta": "layer4.0.bn1.bias",
    }
    with tf.GradientTape() as tape:
        tape.watch(x)
        out = tf.reduce_mean(network(x, training=True), axis=(1, 2))
        total = tf.reduce_sum(out * tf.linspace(-1.0, 1.0, out.shape[-1]))
    dimage, *gradients = tape.gradient(total, [x, *(names[name].value for name in wanted.values())])
    fixture.compare(f"{kind}.out_train", out, rtol=1e-4, atol=1e-5)
    _gradient(fixture, f"{kind}.train_dimage", dimage.numpy().transpose(0, 3, 1, 2), 2e-3)
    for key, gradient in zip(wanted, gradients, strict=True):
        value = _to_torch(gradient.numpy())
        _gradient(fixture, f"{kind}.{key}", value[: len(fixture.data[f"{kind}.{key}"])], 2e-3)
    for key in [key for key in fixture.data if key.startswith(f"{kind}.after.")]:
        name = key.removeprefix(f"{kind}.after.")
        _statistic(fixture, key, network, name, names[name].numpy(), before[name], image.shape, 1, {"rtol": 1e-4, "atol": 1e-6})


def _gradient(fixture: Fixture, key: str, ours: np.ndarray, rtol: float) -> None:
    """Small elements are sums of large terms that cancel: what counts is the size of the whole array's largest."""
    fixture.compare(key, ours, rtol=rtol, atol=rtol * 0.03 * float(np.abs(fixture.data[key]).max()))


def _statistic(fixture, key, network, name, ours, before, shape, passes, tolerance) -> None:
    variance = name.endswith("running_var")
    if variance:
        ours = _unbiased(network, name, ours, before, shape, passes)
    fixture.compare(key, ours, **tolerance, note="Keras' n brought to n - 1" if variance else "")


def _pixels(nchw: np.ndarray) -> np.ndarray:
    """The pixels in 0..255 that ImageNet's mean and deviation bring to these values."""
    return ((nchw.transpose(0, 2, 3, 1) * DEVIATION + MEAN) * 255.0).astype(np.float32)


def _entry(weights: dict[str, np.ndarray], kind: str, side: int) -> ComposedRetriever:
    words = weights["text_encoder.embedding_layer.embedding.weight"]
    cells = [cell for cell in ("lstm", "gru") if f"text_encoder.{cell}.weight_ih_l0" in weights]
    dim = len(weights["image_encoder.0.bias"])
    text = TEXT_ENCODERS.get("_".join(cells))(
        vocabulary_size=words.shape[0],
        embedding_dim=words.shape[1],
        units=weights[f"text_encoder.{cells[0]}.weight_hh_l0"].shape[1],
        layers=sum(bool(re.fullmatch(rf"text_encoder\.{cells[0]}\.weight_ih_l\d+", name)) for name in weights),
        dim=dim,
        head="dense" if "text_encoder.fc_output.weight" in weights else "bn_dense",
        dropout=0.0,
    )
    composer = COMPOSERS.get("tirg_fiq2020")(name="composer")
    model = ComposedRetriever(ImageEncoder(f"torch_{kind}", side, batch_norm="train"), text, composer, dim=dim)
    model.compile("sgd", LOSSES.get("batch_hard_triplet")())
    return model


@checks(r"full_tirg_(resnet\d+)\.npz")
def full_tirg(fixture: Fixture) -> None:
    kind = fixture.path.stem.removeprefix("full_tirg_")
    weights, seed = fixture.inputs_below("w."), int(fixture.input("seed"))
    reference, target = fixture.input("image_ref"), fixture.input("image_target")
    ids = fixture.input("ids")
    fixture.exact("ids", _word_ids(fixture, ids.shape[1]))
    fixture.equal("optim_has_w", "w" in weights, bool(fixture.input("optim_has_w")))
    model = _entry(weights, kind, reference.shape[2])
    network = model.image_encoder.network
    trunk = _fill_trunk(network, seed, basic=not TORCH_RESNETS[kind].bottleneck)
    slots = entry_slots(model, trunk=False)
    fill(slots, weights, fixture.path, "the entry")
    names = [name for slot in slots for name in slot.names]
    counters = [name.replace("running_var", "num_batches_tracked") for name in names if name.endswith("running_var")]
    fixture.equal("state_dict_keys", sorted([*names, *counters]), sorted(str(name) for name in fixture.data["state_dict_keys"]))
    fixture.equal("state_dict_keys", {why_unused(name) for name in counters}, {"counter of batches"})
    inputs = {
        "reference_image": tf.constant(_pixels(reference)),
        "target_image": tf.constant(_pixels(target)),
        "text": tf.constant(np.maximum(ids, 0)),
        # The markers and unknown words have the id of the padding.
        "text_lengths": tf.constant((ids >= 0).sum(axis=1)),
    }
    labels, close = np.arange(len(ids)), {"rtol": 5e-4, "atol": 1e-5}

    def parts(training: bool) -> tuple:
        features = model.encode_image(inputs["reference_image"], training)
        (composed,) = model.compose_levels(features, inputs["text"], training, inputs["text_lengths"])
        (goal,) = model.project_levels(model.encode_image(inputs["target_image"], training), training)
        return features, composed, goal

    features, composed, goal = parts(False)
    fixture.compare("eval.reference", model.project_levels(features)[0], **close)
    fixture.compare("eval.composed", composed, **close)
    fixture.compare("eval.target", goal, **close)
    outputs = model(inputs, training=False)
    fixture.compare("eval.query_feature", model.scaled(outputs["query"]), **close)
    fixture.compare("eval.index_feature", model.scaled(outputs["target"]), **close)
    fixture.compare("eval.loss", model.compute_loss(inputs, labels, outputs, training=False), **close)

    before = {v.path: v.numpy() for v in model.non_trainable_variables}

    def reset() -> None:
        for variable in model.non_trainable_variables:
            variable.assign(before[variable.path])

    _, composed, goal = parts(True)
    fixture.compare("train.composed", composed, **close)
    fixture.compare("train.target", goal, **close)
    reset()
    variables = {slot.names[0]: slot for slot in slots} | {f"backbone.{name}": Slot((name,), v) for name, v in trunk.items()}
    wanted = [key.removeprefix("train.grad.") for key in fixture.data if key.startswith("train.grad.")]
    with tf.GradientTape() as tape:
        loss = model.compute_loss(inputs, labels, model(inputs, training=True))
    gradients = tape.gradient(loss, [model.composer.scalars.value, *(variables[name].variable.value for name in wanted)])
    fixture.compare("train.loss", loss, **close)
    _gradient(fixture, "train.w_grad", np.concatenate([gradients[0], [0.0, 0.0]]), 5e-3)
    for name, gradient in zip(wanted, gradients[1:], strict=True):
        value = _to_torch(tf.convert_to_tensor(gradient).numpy())
        if "embedding" in name:
            value = value.T
        key = f"train.grad.{name}"
        _gradient(fixture, key, value.reshape(fixture.data[key].shape), 5e-3)
    # That was our step, with two passes of the trunk. The original's third is the reference's second.
    for passes in (2, 3):
        if passes == 3:
            reset()
            model.encode_image(inputs["reference_image"], training=True)
            model(inputs, training=True)
        for key in [key for key in fixture.data if key.startswith(f"after_{passes}_passes.backbone.")]:
            name = key.removeprefix(f"after_{passes}_passes.backbone.")
            variable = trunk[name]
            shape = inputs["target_image"].shape
            _statistic(fixture, key, network, name, variable.numpy(), before[variable.path], shape, passes, close)


def _word_ids(fixture: Fixture, width: int) -> np.ndarray:
    """Ids of the recorded texts by the recorded vocabulary, as the original has them; -1 in the padding."""
    words = [str(word) for word in fixture.input("vocab")]
    tokenizer = WordTokenizer(words[3:], spelling="fashion_iq", legacy_markers=True, specials=words[:3])
    return tokenizer.ragged([str(text) for text in fixture.input("text")]).to_tensor(-1, shape=(None, width)).numpy()
