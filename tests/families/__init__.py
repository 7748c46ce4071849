"""Small models of 35 families, with random weights; nothing is downloaded."""

from families import text, vision
from families.registry import FAMILIES, needed

__all__ = ["FAMILIES", "needed", "text", "vision"]
