"""The layer sweep: every read layer grafted into every write layer, and the best cell evaluated."""
