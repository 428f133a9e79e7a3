"""Scores of a student: metrics, tables, panels, and the paper's numbers."""
