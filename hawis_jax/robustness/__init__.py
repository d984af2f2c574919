"""Nets on simulated chips: the Monte Carlo engine and its statistics."""
