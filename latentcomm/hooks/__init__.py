"""Reading and writing activations by hook points: capture, graft, decode, shared prefixes, logit lens."""
