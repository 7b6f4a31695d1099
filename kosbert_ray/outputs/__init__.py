"""Tools for existing outputs: search, verify, compare, cluster, export, report."""
