"""Running jobs on a cluster."""
