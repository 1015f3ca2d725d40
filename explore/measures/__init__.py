"""How near two sets of pictures are, and how true reconstructions."""
