"""How vectors are stored: one module for each kind, listed in ``table``."""
