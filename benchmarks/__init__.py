"""Measurements of this machine: each suite checks before it times. Public names only."""
