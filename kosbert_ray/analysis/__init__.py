"""What people do with vectors besides searching them: clusters (``kmeans``), what they are about (``terms``), near-duplicates
(``duplicates``)."""
