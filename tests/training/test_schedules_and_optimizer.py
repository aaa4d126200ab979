"""Learning-rate schedules and AdamW with groups."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.parity.harness import run_file
from tests.shared import shared
from tf_fashion.core.errors import UsageError
from tf_fashion.training.optimizers import GroupedAdamW
from tf_fashion.training.schedules import WarmupCosine, WarmupStepDecay


def test_step_decay_by_hand():
    schedule = WarmupStepDecay(0.00011148, 32, 562)
    base = 0.00011148 * 2
    steps = np.array([0, 312, 313, 9 * 562 - 1, 9 * 562, 70 * 562])
    wanted = [base * 32 / 10_000, base * 313 * 32 / 10_000, base, base, base * 0.4747, base * 0.4747**7]
    np.testing.assert_allclose(schedule.rates(steps), np.minimum(wanted, base), rtol=1e-12)
    np.testing.assert_allclose(schedule(tf.constant(9 * 562)), base * 0.4747, rtol=1e-6)


def test_cosine_rises_and_falls_to_its_end():
    rates = WarmupCosine(1.0, 200, 0.15, 0.1).rates(np.arange(250))
    assert (np.diff(rates[:30]) > 0).all() and (np.diff(rates[31:200]) < 0).all()
    np.testing.assert_allclose(rates[[0, 200, 249]], [1 / 30, 0.1, 0.1], rtol=1e-9)
    np.testing.assert_allclose(rates[30], 1.0, rtol=1e-9)


def test_cosine_that_ends_with_the_last_step():
    rates = WarmupCosine(2.0, 40, 0.25, end_at_last_step=True).rates(np.arange(41))
    np.testing.assert_allclose(rates[[9, 24, 39, 40]], [2.0, 1.0, 0.0, 0.0], rtol=1e-9, atol=1e-15)


def test_cosine_with_a_warmup_in_steps():
    schedule = WarmupCosine(0.3, 20, warmup_steps=4)
    wanted = [0.075, 0.15, 0.225, 0.3, 0.3, 0.15, 0.0, 0.0]
    np.testing.assert_allclose(schedule.rates(np.array([0, 1, 2, 3, 4, 12, 20, 30])), wanted, rtol=1e-12, atol=1e-17)
    for total in (4, 9, 10):
        np.testing.assert_allclose(WarmupCosine(1.0, total, warmup_steps=10).rates(np.arange(total)), np.arange(1, total + 1) / 10)
    np.testing.assert_allclose(WarmupCosine(1.0, 10, warmup_steps=0).rates(np.array([0, 5])), [1.0, 0.5])


def test_steps_counted_from_epoch_zero():
    schedule = WarmupStepDecay(0.01, 64, 10, 0, 0.5, [2, 3], reference_batch=32, first_epoch=0)
    np.testing.assert_allclose(schedule.rates(np.array([0, 19, 20, 30])), [0.02, 0.02, 0.01, 0.005], rtol=1e-12)


OTHERS = [WarmupStepDecay(1e-4, 8, 10, reference_batch=32, first_epoch=0), WarmupCosine(1e-3, 50, end_at_last_step=True)]
OTHERS.append(WarmupCosine(1e-3, 50, warmup_steps=7))


@pytest.mark.parametrize("schedule", [WarmupStepDecay(1e-4, 8, 10), WarmupCosine(1e-3, 50), *OTHERS])
def test_schedules_survive_json(schedule):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(schedule)))
    again = keras.saving.deserialize_keras_object(config)
    np.testing.assert_array_equal(again.rates(np.arange(60)), schedule.rates(np.arange(60)))


def test_wrong_options():
    with pytest.raises(UsageError):
        WarmupStepDecay(batch_size=0)
    with pytest.raises(UsageError):
        WarmupCosine(0.1, 10, warmup_ratio=1.0)
    with pytest.raises(UsageError, match="warmup_steps must not be negative"):
        WarmupCosine(0.1, 10, warmup_steps=-1)
    with pytest.raises(UsageError, match="regular expression"):
        GroupedAdamW(lr_multipliers={"(": 1.0})


def test_groups_and_decay():
    backbone, head = keras.layers.Dense(2, name="backbone"), keras.layers.Dense(2, name="head")
    model = keras.Sequential([keras.Input((3,)), backbone, head])
    before = [v.numpy() for v in model.trainable_variables]
    optimizer = GroupedAdamW(0.1, 0.5, lr_multipliers={"backbone/": 0.0})
    optimizer.apply([tf.zeros_like(v.value) for v in model.trainable_variables], model.trainable_variables)
    after = [v.numpy() for v in model.trainable_variables]
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_allclose(after[2], before[2] * (1 - 0.05), rtol=1e-6)
    np.testing.assert_array_equal(after[3], before[3])


def test_only_kernels_and_embeddings_decay():
    attention = keras.layers.MultiHeadAttention(2, 3)
    attention.build((None, 4, 6), (None, 4, 6))
    layers = [attention, keras.layers.GRU(3), keras.layers.LayerNormalization(), keras.layers.Embedding(5, 2), keras.layers.Dense(2)]
    for layer in layers[1:]:
        layer.build((None, 4, 6))
    shapes = {"class_embedding": (4,), "projection": (4, 2), "logit_scale": (), "logit_bias": (), "gains": (4,)}
    alone = [keras.Variable(np.ones(shape, np.float32), name=name) for name, shape in shapes.items()]
    variables = [*(v for layer in layers for v in layer.trainable_variables), *alone]
    decays = {}
    for option in (False, True):
        optimizer = GroupedAdamW(0.1, 0.5, decay_vectors=option)
        optimizer.build(variables)
        decays[option] = optimizer._decays
    kernels = {"kernel", "recurrent_kernel", "embeddings", "class_embedding", "projection"}
    assert decays[False] == tuple(0.5 if v.name in kernels else 0.0 for v in variables)
    assert {v.name for v in variables} - kernels == {"bias", "gamma", "beta", "logit_scale", "logit_bias", "gains"}
    assert set(decays[True]) == {0.5}


def test_a_step_by_hand():
    variable = keras.Variable(np.array([[1.0, -2.0]], np.float32))
    optimizer = GroupedAdamW(0.1, 0.01, 0.5, 0.9, 1e-3)
    theta, m, v = variable.numpy().astype(np.float64), 0.0, 0.0
    for step, g in enumerate(np.array([[[0.3, 1e-3]], [[-0.1, 2e-3]]]), start=1):
        optimizer.apply([tf.constant(g, tf.float32)], [variable])
        m, v = 0.5 * m + 0.5 * g, 0.9 * v + 0.1 * g**2
        theta = theta * (1 - 0.1 * 0.01)
        theta = theta - 0.1 * (m / (1 - 0.5**step)) / (np.sqrt(v / (1 - 0.9**step)) + 1e-3)
    np.testing.assert_allclose(variable.numpy(), theta, rtol=1e-5)


def test_saved_with_the_model(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Embedding(5, 2), keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile(GroupedAdamW(WarmupStepDecay(1e-2, 8, 10), lr_multipliers={"embedding": 0.5}), loss="mse")
    x, y = np.array([[0, 1, 2], [3, 4, 0]]), np.ones((2, 1))
    model.fit(x, y, epochs=2, verbose=0)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert again.optimizer.get_config() == model.optimizer.get_config()
    model.fit(x, y, epochs=2, verbose=0)
    again.fit(x, y, epochs=2, verbose=0)
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "name", ["fashioniq2020/lr_schedule", "fashioniq2020/lr_schedule_rtic", "fashioniq2020/train_steps_tirg", "fashionklip/scheduler"]
)
def test_recorded_numbers(name):
    import tests.parity.checks.clip_losses
    import tests.parity.checks.schedules_rtic
    import tests.parity.checks.training_steps  # noqa: F401

    fixture = run_file(shared(f"golden/{name}.npz"))
    assert fixture.comparisons and [str(c) for c in fixture.comparisons if not c.ok] == []
