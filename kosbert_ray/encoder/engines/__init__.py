"""Engines that run the transformer."""
