"""The configuration: its fields, their checks, and what follows from them."""
