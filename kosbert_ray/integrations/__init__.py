"""Kosbert-ray as a step of other systems."""
