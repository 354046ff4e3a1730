"""What a PyTorch user would run instead, written from the formulas: the peers that agop_jax is timed against."""
