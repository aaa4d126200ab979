"""The trainable models: plain `keras.Model`s on shared encoders."""

from tf_fashion.models.adapter import DomainAdapter, load_adapter
from tf_fashion.models.attributes import AttributeClassifier, load_attributes
from tf_fashion.models.composed import ComposedRetriever, load_composed
from tf_fashion.models.dual import DualEncoder, load_dual

__all__ = [
    "AttributeClassifier",
    "ComposedRetriever",
    "DomainAdapter",
    "DualEncoder",
    "load_adapter",
    "load_attributes",
    "load_composed",
    "load_dual",
]
