"""A site: one hook point on the residual stream of a transformer, named by layer and stream."""

import difflib
from dataclasses import dataclass

STREAMS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
"""The streams of width d_model that a block reads or writes."""


@dataclass(frozen=True, order=True)
class Site:
    """One stream of one block; layers count from 0, as in TransformerLens.

    `Site(k)` is the residual stream *after* block k: a paper's "after layer k", counted from 1, is `Site(k - 1)`.

    Raises:
        ValueError: the layer is negative, or the stream is none of `STREAMS`.

    >>> Site(3).hook_name
    'blocks.3.hook_resid_post'
    >>> Site(0, "attn_out").hook_name
    'blocks.0.hook_attn_out'
    """

    layer: int
    stream: str = "resid_post"

    def __post_init__(self) -> None:
        if self.layer < 0:
            raise ValueError(f"layer {self.layer} is negative; layers count from 0")
        if self.stream not in STREAMS:
            near = difflib.get_close_matches(self.stream, STREAMS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(STREAMS)}"
            raise ValueError(f"there is no stream {self.stream!r}; {hint}")

    @property
    def hook_name(self) -> str:
        """The TransformerLens hook point of this site."""
        return f"blocks.{self.layer}.hook_{self.stream}"

    @classmethod
    def parse(cls, hook_name: str) -> "Site":
        """The site of a hook name: the inverse of `hook_name`.

        Raises:
            ValueError: the name is not that of a site.

        >>> Site.parse("blocks.2.hook_mlp_out")
        Site(layer=2, stream='mlp_out')
        """
        parts = hook_name.split(".")
        if len(parts) != 3 or parts[0] != "blocks" or not parts[1].isdigit() or not parts[2].startswith("hook_"):
            raise ValueError(f"{hook_name!r} is not the hook name of a site; expected blocks.LAYER.hook_STREAM")
        return cls(int(parts[1]), parts[2].removeprefix("hook_"))
