"""Input formats: ``base`` (the protocol), one module per format, and ``table`` (the registered formats).

To add a format, write a module with a class that implements :class:`~kosbert_ray.corpus.formats.base.Format` and add one
line to ``table``. ``line_based`` and ``columnar`` are shared by several formats.
"""
