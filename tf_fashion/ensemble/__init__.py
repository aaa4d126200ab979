"""Score files, their fusion, the search for fusion weights, and the challenge's submission."""
