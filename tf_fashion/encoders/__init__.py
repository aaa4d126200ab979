"""ENCODE: pictures and words to features; shared by every model."""
