"""The storage of vectors: one module for each kind, listed in ``table``."""
