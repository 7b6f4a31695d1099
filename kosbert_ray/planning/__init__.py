"""Estimates and checks before a job runs."""
