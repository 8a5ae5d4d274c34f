"""Similarity of all pairs of layers in one pass over the rows."""
