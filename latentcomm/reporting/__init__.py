"""Tables, figures and pages from results alone; no model is run here."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules={"plots"})
