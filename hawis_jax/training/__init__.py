"""Training steps as pure functions."""
