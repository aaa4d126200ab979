"""Executable contracts: what every component of a kind promises, for the components of others too."""
