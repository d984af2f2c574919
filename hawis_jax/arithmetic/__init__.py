"""Arithmetic of 1-bit and 8-bit products, in pure functions."""
