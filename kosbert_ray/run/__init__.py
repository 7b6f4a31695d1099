"""Runs a job: plan, read, tokenize, encode, write, finalize."""
