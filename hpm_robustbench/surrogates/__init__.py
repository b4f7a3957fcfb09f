"""What an attacker may look at instead of the defence: differentiable views of it, and what decides its answer."""
