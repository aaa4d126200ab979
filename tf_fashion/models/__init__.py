"""The trainable models: plain `keras.Model`s on shared encoders."""

from tf_fashion.models.composed import ComposedRetriever

__all__ = ["ComposedRetriever"]
