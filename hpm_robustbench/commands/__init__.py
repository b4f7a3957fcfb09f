"""What ``hpm-bench`` can be asked: one file for each command, or for a few that belong together.

``options`` is what they share. No torch until a command is run.
"""
