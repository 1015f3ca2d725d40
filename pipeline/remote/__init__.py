"""Shards that are elsewhere: file systems behind URLs, and the disk cache that their copies are read from."""
