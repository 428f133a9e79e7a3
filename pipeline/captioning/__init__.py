"""Index minus store → captions in the store."""
