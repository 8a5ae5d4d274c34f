"""The reverse cascade: a large model generates a prefix of the reply, the opening, and a small one continues it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
