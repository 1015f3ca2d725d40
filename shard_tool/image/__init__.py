"""Photo to sample: what a file is, which part of it counts, its colours, its encoding."""
