"""Publishes outputs as tables of Apache Iceberg and Delta Lake, without copying their shards."""
