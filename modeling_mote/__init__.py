"""MoTE for transformers."""
