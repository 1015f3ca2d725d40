"""Streaming loader over WebDataset shards: flat memory, exact from any position, on any number of processes.

    from pipeline import StreamingLoader

Names are loaded when they are first used: importing the format, as `shard_tool` does, loads no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.batch import Batch as Batch
    from pipeline.format import ShardSet as ShardSet
    from pipeline.loader import StreamingLoader as StreamingLoader
    from pipeline.shards.dataset import Dataset as Dataset

_HOME = {
    "Batch": "pipeline.batch",
    "Dataset": "pipeline.shards.dataset",
    "ShardSet": "pipeline.format",
    "StreamingLoader": "pipeline.loader",
}
__all__ = ["Batch", "Dataset", "ShardSet", "StreamingLoader"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pipeline' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
