"""Captions → vectors."""
