"""Which models exist. Nothing here imports torch."""
