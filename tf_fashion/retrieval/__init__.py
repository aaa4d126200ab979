"""MATCH: exact search, ranks, metrics, protocols and a saved index."""
