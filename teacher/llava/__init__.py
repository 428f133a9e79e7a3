"""LLaVA through transformers and bitsandbytes."""
