"""Training: recipes and data in, a checkpoint out."""
