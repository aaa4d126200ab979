"""Find fashion items by photo, by words, by both, by attributes, and from street to shop. On Keras 3."""

__version__ = "0.1.0"
