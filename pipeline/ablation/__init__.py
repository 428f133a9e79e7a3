"""Variants of a run, queued, compared."""
