"""The embedded default: a small robust digits classifier that needs no download."""
