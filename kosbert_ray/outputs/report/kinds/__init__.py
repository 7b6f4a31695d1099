"""The kinds of vectors in a report, one module for each."""
