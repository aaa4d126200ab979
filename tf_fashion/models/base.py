"""What the models share: everything is built in the constructor, parts travel in the configuration, files are loaded with care."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import keras

from tf_fashion.core.errors import DataError, UsageError


class RetrievalModel(keras.Model):
    """Base of the trainable models.

    A subclass lists in `parts` the constructor's arguments that are Keras objects, gives them in `get_config` through
    `part_configs`, and builds all its layers in its constructor. The arguments of its `compile` that a saved model keeps are attributes
    of the same names: `compiled_parts` are Keras objects, `compiled_values` plain ones.
    """

    parts: ClassVar[tuple[str, ...]] = ()
    compiled_parts: ClassVar[tuple[str, ...]] = ("optimizer", "loss")
    compiled_values: ClassVar[tuple[str, ...]] = ()

    def build(self, input_shape: Any = None) -> None:
        self.built = True

    def _maybe_symbolic_build(self, *args: Any, **kwargs: Any) -> None:
        # Everything is built already. Keras' own way takes a batch from the iterator, so that training would start with the
        # second one, and averages it over the replicas, which integers do not survive.
        return

    def compile(self, *args: Any, **kwargs: Any) -> None:
        super().compile(*args, **kwargs)
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)

    def get_compile_config(self) -> dict[str, Any] | None:
        if not self.compiled:
            return None
        return {**self._serialized(self.compiled_parts), **{name: getattr(self, name) for name in self.compiled_values}}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        parts = {name: config[name] for name in self.compiled_parts if config[name] is not None}
        self.compile(**{**config, **{name: keras.saving.deserialize_keras_object(part) for name, part in parts.items()}})

    def part_configs(self) -> dict[str, Any]:
        """The configurations of the parts."""
        return self._serialized(self.parts)

    def _serialized(self, names: tuple[str, ...]) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in names}
        return {name: None if value is None else keras.saving.serialize_keras_object(value) for name, value in values.items()}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        config = dict(config)
        for part in cls.parts:
            if isinstance(config.get(part), dict):
                config[part] = keras.saving.deserialize_keras_object(config[part], custom_objects=custom_objects)
        encoder = config["image_encoder"]
        if not encoder.trainable:
            # Its constructor does not tell the layers inside, and TensorFlow skips assigning what an attribute has already.
            encoder.trainable = True
            encoder.trainable = False
        return cls(**config)


def load_path(path: str | Path) -> Path:
    """A model's path, checked before anything slow happens.

    Raises:
        UsageError: there is no such file.
    """
    if not Path(path).is_file():
        raise UsageError(
            f"{path}: expected a .keras file of a training run, found {'a folder' if Path(path).is_dir() else 'nothing there'}."
        )
    return Path(path)


Kind = TypeVar("Kind", bound=RetrievalModel)


def load_as(path: str | Path, kind: type[Kind]) -> Kind:
    """Loads a `.keras` file that must hold a model of one class.

    Raises:
        UsageError: there is no such file.
        DataError: it holds something else, or is damaged.
    """
    path = load_path(path)
    try:
        model = keras.models.load_model(path, compile=False)
    except Exception as error:
        raise DataError(
            f"{path}: not a model that can be loaded ({type(error).__name__}: {str(error).splitlines()[0][:200]})."
        ) from None
    if not isinstance(model, kind):
        raise DataError(f"{path}: expected a {kind.__name__}, found a {type(model).__name__}.")
    return model
