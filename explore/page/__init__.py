"""The local page: its layout, and what its pictures show."""
