"""Worlds whose truth is known, and attackers of their own: what the proof and the table of MSA's strength share."""
