"""From a source to a finished set: the plan, the reading, the shards, the journal, the place."""
