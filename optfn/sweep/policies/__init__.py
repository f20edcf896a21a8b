"""Policies: which trials of a sweep continue, pause or stop, from NumPy arrays of scores alone."""
