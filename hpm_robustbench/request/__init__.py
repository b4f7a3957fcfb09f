"""From what a person asks for, in words, to specs and options."""
