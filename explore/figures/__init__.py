"""What commands draw: figures, sheets and strips."""
