"""Integrations with workflow systems."""
