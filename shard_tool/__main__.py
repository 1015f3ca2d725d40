"""`python -m shard_tool` is the `shard_tool` command."""

from shard_tool.cli import run

run()
