"""Runs: configuration, resumable `model.fit`, evaluation, and the files that a run leaves behind."""
