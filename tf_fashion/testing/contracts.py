"""Executable contracts: what every layer, composer and loss of the library must do, as one call per component.

A failed promise raises AssertionError with a sentence about it. The functions need no test framework.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_fashion.composers import COMPOSERS, Composer
from tf_fashion.losses import LOSSES, MatchingLoss


def _expect(condition: Any, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _expect_close(ours: Any, wanted: Any, what: str, rtol: float = 1e-5, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(ours), np.asarray(wanted), rtol=rtol, atol=atol, err_msg=what)


def _expect_finite(values: Any, what: str) -> None:
    for value in tf.nest.flatten(values):
        _expect(np.isfinite(np.asarray(tf.convert_to_tensor(value), dtype=np.float64)).all(), f"{what}: NaN or infinite values")


@contextlib.contextmanager
def _policy(name: str) -> Iterator[None]:
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.mixed_precision.set_dtype_policy(before)


def _constructor_arguments(cls: Any) -> set[str]:
    parameters = inspect.signature(cls.__init__).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name for p in parameters if p.kind in kinds and p.name != "self"}


def _round_trip(obj: Any) -> Any:
    """A second object from the first one's configuration after a journey through JSON."""
    config = obj.get_config()
    missing = _constructor_arguments(type(obj)) - set(config)
    _expect(not missing, f"{type(obj).__name__}.get_config lacks the constructor arguments {sorted(missing)}")
    serialized = keras.saving.serialize_keras_object(obj)
    _expect(serialized["registered_name"], f"{type(obj).__name__} is not registered: add @keras.saving.register_keras_serializable")
    again = keras.saving.deserialize_keras_object(json.loads(json.dumps(serialized)))
    _expect(type(again) is type(obj), f"{type(obj).__name__} comes back from its configuration as {type(again).__name__}")
    first, second = json.dumps(config, sort_keys=True, default=str), json.dumps(again.get_config(), sort_keys=True, default=str)
    _expect(first == second, f"{type(obj).__name__}: the configuration changes on its way: {first} became {second}")
    return again


def run_layer_test(
    layer_cls: type[keras.layers.Layer],
    init_kwargs: Mapping[str, Any] | None = None,
    inputs: Sequence[np.ndarray] = (),
    expected_output_shape: tuple[int, ...] | None = None,
    expected_output_dtype: str | None = None,
    mixed_precision: bool = True,
    independent_rows: bool = True,
) -> keras.layers.Layer:
    """Checks a layer on given inputs.

    Builds it, checks shape (computed = real = expected) and dtype, finite outputs and gradients for all trained weights in
    training and inference (weights that only losses of `add_loss` reach need none in inference), inference one row at a time,
    the configuration's way through JSON, a tiny model's way through a `.keras` file without `custom_objects`, and runs under
    `mixed_float16` and `mixed_bfloat16`.

    Args:
        layer_cls: The class.
        init_kwargs: Its constructor arguments.
        inputs: Arrays of one batch of at least two rows, in the order of the call's arguments.
        expected_output_shape: Shape for this batch.
        expected_output_dtype: Dtype of the output under the float32 policy.
        mixed_precision: Whether to try the mixed policies.
        independent_rows: Whether a row's inference result must not depend on the other rows of the batch.

    Returns:
        The built layer.

    Raises:
        AssertionError: a promise is broken.
    """
    name, kwargs = layer_cls.__name__, dict(init_kwargs or {})
    layer = layer_cls(**kwargs)
    tensors = [tf.constant(x) for x in inputs]
    out = layer(*tensors)
    shapes = [tuple(x.shape) for x in tensors]
    if expected_output_shape is not None:
        _expect(tuple(out.shape) == expected_output_shape, f"{name}: output {tuple(out.shape)}, not {expected_output_shape}")
    if expected_output_dtype is not None:
        _expect(out.dtype == expected_output_dtype, f"{name}: output {out.dtype}, not {expected_output_dtype}")
    computed = tuple(layer.compute_output_shape(*shapes))
    _expect(computed == tuple(out.shape), f"{name}: compute_output_shape says {computed}, the output has {tuple(out.shape)}")

    takes_training = "training" in inspect.signature(layer.call).parameters
    only_by_added_losses: set[str] = set()
    for training in (True, False):
        options = {"training": training} if takes_training else {}
        with tf.GradientTape(persistent=True) as tape:
            value = layer(*tensors, **options)
            total = tf.reduce_sum(tf.square(tf.cast(value, tf.float32)))
            added = tf.add_n([tf.zeros(()), *layer.losses])
        _expect_finite((value, added), f"{name}, training={training}")
        weights = [v.value for v in layer.trainable_variables]
        both = tape.gradient(total, weights), tape.gradient(added, weights) if layer.losses else [None] * len(weights)
        del tape
        for variable, gradient, extra in zip(layer.trainable_variables, *both, strict=True):
            if gradient is None and extra is not None:
                only_by_added_losses.add(variable.path)
            reached = gradient is not None or variable.path in only_by_added_losses
            _expect(reached, f"{name}: no gradient reaches {variable.path}, training={training}")
            for part in (gradient, extra):
                if part is not None:
                    _expect_finite(part, f"{name}: gradient of {variable.path}, training={training}")

    out = layer(*tensors, training=False) if takes_training else layer(*tensors)
    first = [x[:1] for x in tensors]
    alone = layer(*first, training=False) if takes_training else layer(*first)
    _expect_finite(alone, f"{name} on one row")
    if independent_rows:
        _expect_close(alone[0], out[0], f"{name}: a row's result depends on its batch", rtol=1e-4)
    zeros = [tf.zeros_like(x) for x in tensors]
    _expect_finite(layer(*zeros, training=False) if takes_training else layer(*zeros), f"{name} on zeros")

    _round_trip(layer)
    ports = [keras.Input(x.shape[1:], dtype=x.dtype.name) for x in tensors]
    model = keras.Model(ports, layer(*ports))
    before = model(tensors)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.keras"
        model.save(path)
        loaded = keras.saving.load_model(path)
    _expect_close(loaded(tensors), before, f"{name}: another result after saving and loading", rtol=1e-6, atol=1e-6)

    if mixed_precision:
        for policy in ("mixed_float16", "mixed_bfloat16"):
            with _policy(policy):
                value = layer_cls(**kwargs)(*tensors)
            _expect_finite(tf.cast(value, tf.float32), f"{name} under {policy}")
            _expect(tuple(value.shape) == tuple(out.shape), f"{name} under {policy}: output {tuple(value.shape)}")
    return layer


def run_composer_test(
    composer_cls: type[Composer],
    init_kwargs: Mapping[str, Any] | None = None,
    dim: int = 8,
    text_dim: int | None = None,
    batch: int = 5,
    seed: int = 0,
) -> Composer:
    """Checks a composer: all of `run_layer_test`, its registration, and that the query depends on what it says it uses.

    Args:
        composer_cls: The class, registered in `COMPOSERS`.
        init_kwargs: Its constructor arguments.
        dim: Width of the image feature (channels of the map if spatial).
        text_dim: Width of the text feature; `dim` if None.
        batch: Rows, at least 2.
        seed: Seed of the random features.

    Returns:
        The built composer.

    Raises:
        AssertionError: a promise is broken.
    """
    name = composer_cls.__name__
    _expect(issubclass(composer_cls, Composer), f"{name} is not a Composer")
    _expect(
        composer_cls in [COMPOSERS.get(known) for known in COMPOSERS],
        f"{name} is not registered: add @COMPOSERS.register('a_name')",
    )
    random = np.random.default_rng(seed)
    image_shape = (batch, 4, 3, dim) if composer_cls.spatial else (batch, dim)
    image = random.normal(size=image_shape).astype(np.float32)
    text = random.normal(size=(batch, text_dim or dim)).astype(np.float32)
    composer = run_layer_test(composer_cls, init_kwargs, (image, text), expected_output_shape=image_shape)
    x, t = tf.constant(image), tf.constant(text)
    with tf.GradientTape() as tape:
        tape.watch([x, t])
        total = tf.reduce_sum(tf.square(composer(x, t, training=False)))
    for what, used, gradient in zip(
        ("image", "text"), (composer.uses_image, composer.uses_text), tape.gradient(total, [x, t]), strict=True
    ):
        moves = gradient is not None and bool(tf.reduce_any(gradient != 0))
        _expect(moves == used, f"{name}: uses_{what} is {used}, but the query {'moves' if moves else 'does not move'} with the {what}")
    return composer


def value_and_gradients(loss: Callable, labels: Any, query: Any, target: Any) -> tuple[Any, list[Any]]:
    """A loss on one process with its gradients for query and target."""
    query, target = tf.convert_to_tensor(query), tf.convert_to_tensor(target)
    with tf.GradientTape() as tape:
        tape.watch([query, target])
        value = loss(labels, {"query": query, "target": target})
    return value, tape.gradient(value, [query, target], unconnected_gradients="zero")


def replica_value_and_gradients(
    loss: Callable, labels: Any, query: Any, target: Any, sizes: Sequence[int], strategy: tf.distribute.Strategy
) -> tuple[Any, list[Any]]:
    """The same on a strategy's replicas: the sum of the replicas' losses, their gradients put together again.

    Args:
        loss: The loss.
        labels, query, target: The global batch.
        sizes: Rows per replica, in order.
        strategy: A strategy with `len(sizes)` replicas.

    Returns:
        The global loss and the gradients for query and target of the global batch.
    """
    edges = np.cumsum([0, *sizes])
    columns = [np.asarray(x) for x in (labels, query, target)]

    def local(context: Any) -> tuple[tf.Tensor, ...]:
        index = context.replica_id_in_sync_group
        return tuple(tf.constant(x[edges[index] : edges[index + 1]]) for x in columns)

    def replica(rows: Any) -> Any:
        # As in `fit`, the graph must not know the number of rows: TensorFlow's graph optimiser divides by it if it is a known 0.
        rows = [tf.raw_ops.PlaceholderWithDefault(input=x, shape=[None, *x.shape[1:]]) for x in rows]
        return value_and_gradients(loss, *rows)

    @tf.function
    def step(data: Any) -> Any:
        return strategy.run(replica, args=(data,))

    value, gradients = step(strategy.experimental_distribute_values_from_function(local))
    joined = [tf.concat(strategy.experimental_local_results(gradient), axis=0) for gradient in gradients]
    return sum(strategy.experimental_local_results(value)), joined


def run_loss_test(
    loss_cls: type[MatchingLoss],
    init_kwargs: Mapping[str, Any] | None = None,
    reference: Callable[[np.ndarray, np.ndarray, np.ndarray], float] | None = None,
    labels: Callable[[np.random.Generator, int], np.ndarray] | None = None,
    order_free: bool = True,
    strategy: tf.distribute.Strategy | None = None,
    seed: int = 0,
) -> MatchingLoss:
    """Checks a matching loss.

    Checks registration, a float32 scalar, finite values and gradients (distinct labels, repeated labels, one label only, one row,
    zero vectors, float16 inputs), the configuration's way through JSON, equality with a naive reference, independence of the
    order of rows, and that two replicas (with equal and unequal shares) give the loss and gradients of one process.

    Args:
        loss_cls: The class, registered in `LOSSES`.
        init_kwargs: Its constructor arguments.
        reference: Naive implementation `(labels, query, target) -> loss` in NumPy.
        labels: Makes `y_true` of n rows, for losses whose labels are no identities.
        order_free: Whether the value must not depend on the order of rows.
        strategy: A strategy with two replicas, for instance a MirroredStrategy over two logical CPUs; None leaves this check out.
            Make one strategy per process: the collective operations of a second one collide with the first one's.
        seed: Seed of the random embeddings.

    Returns:
        The loss.

    Raises:
        AssertionError: a promise is broken.
    """
    name, kwargs = loss_cls.__name__, dict(init_kwargs or {})
    _expect(issubclass(loss_cls, MatchingLoss), f"{name} is not a MatchingLoss")
    _expect(loss_cls in [LOSSES.get(known) for known in LOSSES], f"{name} is not registered: add @LOSSES.register('a_name')")
    loss = loss_cls(**kwargs)
    again = _round_trip(loss)
    random = np.random.default_rng(seed)

    def batch(rows: int, identities: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        y = labels(random, rows) if labels else np.asarray(identities, dtype=np.int64)
        query, target = (random.normal(size=(rows, 6)).astype(np.float32) for _ in range(2))
        return y, query, target

    cases = {
        "distinct labels": batch(6, [4, 0, 5, 2, 7, 9]),
        "repeated labels": batch(7, [0, 0, 1, 2, 2, 2, 3]),
        "one label": batch(4, [3, 3, 3, 3]),
        "one row": batch(1, [0]),
    }
    y, q, t = cases["distinct labels"]
    cases["zero vectors"] = (y, np.zeros_like(q), np.zeros_like(t))
    for case, (y, q, t) in cases.items():
        value, gradients = value_and_gradients(loss, y, q, t)
        _expect(value.shape == () and value.dtype == tf.float32, f"{name}: expected a float32 scalar, found {value!r}")
        _expect_finite([value, *gradients], f"{name}, {case}")
        _expect_close(again(y, {"query": q, "target": t}), value, f"{name}: another value after its configuration's journey")
        if reference is not None:
            _expect_close(value, reference(y, q, t), f"{name}, {case}: differs from the reference", rtol=1e-4)
        if order_free:
            order = random.permutation(len(y))
            _expect_close(
                loss(y[order], {"query": q[order], "target": t[order]}), value, f"{name}, {case}: depends on the order of rows", 1e-4
            )
    y, q, t = cases["repeated labels"]
    half = loss(y, {"query": q.astype(np.float16), "target": t.astype(np.float16)})
    _expect(half.dtype == tf.float32, f"{name}: float16 embeddings give a {half.dtype} loss, not float32")
    _expect_finite(half, f"{name} on float16 embeddings")

    if strategy is not None:
        for case, sizes in (("repeated labels", (5, 2)), ("one row", (1, 0))):
            y, q, t = cases[case]
            value, gradients = value_and_gradients(loss, y, q, t)
            shared, shared_gradients = replica_value_and_gradients(loss, y, q, t, sizes, strategy)
            what = f"{name}, {case}: two replicas of {sizes} rows differ from one process"
            _expect_close(shared, value, what, rtol=1e-6, atol=1e-6)
            for ours, wanted in zip(shared_gradients, gradients, strict=True):
                _expect_close(ours, wanted, f"{what} (gradient)", rtol=1e-5, atol=1e-6)
    return loss
