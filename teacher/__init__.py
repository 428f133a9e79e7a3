"""The frozen teacher: LLaVA captions and text embeddings. Models only: this room writes no files (but `train_mini`)."""
