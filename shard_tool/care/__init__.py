"""Finished sets: looked at, checked, painted, indexed."""
