"""Show the doctests of docstrings as code: they are unfenced, and Markdown would take `>>>` for a quotation."""

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"^(?P<indent>[ ]*)>>> .*(?:\n(?![ ]*$).*)*", re.MULTILINE)


class DoctestsAsCode(griffe.Extension):
    """Fence every doctest, up to the empty line that ends it."""

    def on_object(self, *, obj: griffe.Object, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = DOCTEST.sub(r"\g<indent>```pycon\n\g<0>\n\g<indent>```", obj.docstring.value)
