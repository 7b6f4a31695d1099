"""Vectors in memory: the kinds there are, and a container for each kind of which texts have different amounts."""
