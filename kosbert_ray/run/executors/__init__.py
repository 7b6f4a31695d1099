"""Executors: where the stages of a run are computed, in this process or on Ray."""
