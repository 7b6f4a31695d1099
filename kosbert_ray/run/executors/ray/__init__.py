"""The executor on Ray. No other module of ``run`` imports Ray."""
