"""An approximate index of an output's vectors."""
