"""kosbert-ray: a distributed batch job that turns a large Korean text corpus into sentence embeddings."""

__version__ = "0.1.0"
