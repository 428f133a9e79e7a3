"""DVC stages, each files in → files out: samples, index, caption, embed, report."""
