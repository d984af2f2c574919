"""The stages of a run, and what they read and write."""
