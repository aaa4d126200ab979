"""Checks by subject; every module here is imported by the harness."""
