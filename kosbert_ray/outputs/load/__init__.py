"""Loads outputs into databases."""
