"""Clusters of embeddings, and the pseudo-labels that unlabelled domains get from them."""
