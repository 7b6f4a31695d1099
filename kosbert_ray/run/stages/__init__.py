"""The stages of the pipeline, in order: read, tokenize, encode, write."""
