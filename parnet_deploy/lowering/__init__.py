"""A float32 graph in a lower precision: the types stand in the graph. No torch in it."""
