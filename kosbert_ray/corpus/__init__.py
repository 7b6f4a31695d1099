"""Reads the corpus: lists files, plans fragments and yields slices of rows for the encoder.

In reading order: ``listing`` with ``folders`` (which files) → ``schema`` with ``columns``, ``types`` and ``names`` (which
columns, and their types) → ``plan`` with ``fragments`` (how files are split) → ``reader`` with ``cut`` (the rows of a
fragment, slice by slice). ``formats`` has one module per input format and the table of formats; ``lines`` with ``sniff``
and ``decompress`` serves the line formats.
"""
