"""Evaluation of models on semantic textual similarity (STS), per output type and dimension."""
