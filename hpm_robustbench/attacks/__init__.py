"""Who tries to break it."""
