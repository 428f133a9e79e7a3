"""Sections of the report, what they read, and how they look."""
