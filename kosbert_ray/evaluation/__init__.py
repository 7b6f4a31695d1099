"""How good vectors are: semantic textual similarity (``sts``), and what each output type and dimension costs of it."""
