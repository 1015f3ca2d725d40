"""The shards that are read: several sets as one, those that are open, and reads from them."""
