"""Optimizers as plain data, for configuration files."""
