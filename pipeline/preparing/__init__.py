"""Files of other kinds → images that the index takes."""
