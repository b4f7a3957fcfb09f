"""What the defence is: Hybrid Prototype Mixing over the features of a trained classifier."""
