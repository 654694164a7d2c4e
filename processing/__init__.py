"""Video and text in, tensors out."""
