"""Analysis of vectors: clusters, their terms, near-duplicates, projections, and quality and agreement measures."""
