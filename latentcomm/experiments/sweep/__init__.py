"""Every read layer grafted into every write layer, and the cell that it gives, judged."""
