"""What vectors tell besides search: clusters (``kmeans``), their words (``terms``), near-duplicates (``duplicates``)."""
