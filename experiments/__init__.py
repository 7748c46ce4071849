"""Experiments that answer questions with tables. Public names of manualgrad only."""
