"""A diagnosis of a pair of models: similarity, what the receiver lacks, and where a graft leaves its manifold."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
