"""Errors, registries and safe files: what every other room of the house stands on."""
