"""The trial: attacks propose, the judge alone decides."""
