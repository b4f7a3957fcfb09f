"""What is written down. Nothing here imports torch."""
