"""latentcomm: two language models that communicate through their activations, measured.

Every public name is loaded when it is first used, so that `import latentcomm` loads no torch. They are listed in
`__init__.pyi`.
"""

import sys

import lazy_loader
from jaxtyping import install_import_hook

import latentcomm._core.typed  # noqa: F401 (before the hook that checks by it)
from latentcomm._core.moved import MovedModules
from latentcomm._core.version import __version__ as __version__

install_import_hook("latentcomm", "latentcomm._core.typed.checked")  # every shape in a signature is checked at the call

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
    sys.meta_path.insert(0, MovedModules())  # before what would load a second copy by the path of the package
