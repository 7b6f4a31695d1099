"""Exports an output to other tools' formats: one module per destination, listed in ``table``."""
