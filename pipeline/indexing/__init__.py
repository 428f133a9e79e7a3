"""Folders → pairs → one row a pair."""
