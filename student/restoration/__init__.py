"""One image of any size through the student: restorer, tiles, paths."""
