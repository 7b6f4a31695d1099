"""Engines that run the transformer: one module each, listed in ``table``."""
