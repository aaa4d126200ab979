"""From probabilities of labels to decisions, and how good both are. NumPy only."""
