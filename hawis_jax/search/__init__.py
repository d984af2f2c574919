"""Search methods for width vectors."""
