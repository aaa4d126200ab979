"""The trainable models: plain `keras.Model`s on shared encoders."""

from tf_fashion.models.composed import ComposedRetriever, load_composed

__all__ = ["ComposedRetriever", "load_composed"]
