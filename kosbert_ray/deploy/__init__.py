"""Submits jobs to clusters."""
