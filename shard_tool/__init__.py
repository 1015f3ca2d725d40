"""Raw photos to shard sets; never imports torch."""
