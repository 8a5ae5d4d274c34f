"""The cost of communication: operations as run and by the paper's formula."""

from collections.abc import Sequence
from dataclasses import dataclass

from latentcomm.hooks.shared_prefix import MOST_PACKED
from latentcomm.models import Model, Pass

MULTIPLY_ADD = 2
"""Operations of one multiply-add, as the field counts them."""

EIGH = 9
"""Operations of a symmetric eigendecomposition, times the cube of its width (Golub and Van Loan)."""


@dataclass(frozen=True)
class ModelSize:
    """The sizes that the operations of a model depend on.

    Attributes:
        n_layers, d_model, n_heads, d_head, d_mlp, d_vocab: L, D, H, K, F and V of the formulas.
        n_key_value_heads: heads of keys and values; fewer than `n_heads` under grouped-query attention.
        gated: whether the feed-forward block has a gate, hence three matrices and not two.
    """

    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_key_value_heads: int
    gated: bool

    @classmethod
    def of(cls, model: Model) -> "ModelSize":
        """The sizes of a model."""
        cfg = model.hooked.cfg
        return cls(
            n_layers=int(cfg.n_layers),
            d_model=int(cfg.d_model),
            n_heads=int(cfg.n_heads),
            d_head=int(cfg.d_head),
            d_mlp=int(cfg.d_mlp),
            d_vocab=int(cfg.d_vocab),
            n_key_value_heads=int(getattr(cfg, "n_key_value_heads", None) or cfg.n_heads),
            gated=bool(getattr(cfg, "gated_mlp", False)),
        )

    @property
    def block(self) -> int:
        """The numbers in the matrices of a block."""
        attention = 2 * (self.n_heads + self.n_key_value_heads) * self.d_head
        return self.d_model * (attention + (3 if self.gated else 2) * self.d_mlp)


def pass_flops(
    size: ModelSize,
    *,
    n_new: float | int,
    n_past: float | int = 0,
    n_layers: float | int | None = None,
    n_unembedded: float | int,
) -> float | int:
    """Operations of the matrix products of one row's forward pass, as eager attention runs them.

    With n new positions after p cached ones, a layer costs 2n(2DHK + 2DGK) for queries, keys, values and output,
    4n(n+p)HK for scores and their weighted sum (the masked half is computed too), and 2n(2 or 3)DF for the feed-forward
    block; the unembedding 2DV a position. G is the number of key-value heads. Norms, softmaxes and biases are left out.

    >>> size = ModelSize(1, 4, 2, 2, 8, 10, 1, gated=True)
    >>> pass_flops(size, n_new=1, n_unembedded=0)
    304
    """
    inner, shared = size.n_heads * size.d_head, size.n_key_value_heads * size.d_head
    projections = n_new * size.d_model * (2 * inner + 2 * shared)
    attention = 2 * n_new * (n_new + n_past) * inner
    feed_forward = n_new * (3 if size.gated else 2) * size.d_model * size.d_mlp
    layers = (size.n_layers if n_layers is None else n_layers) * (projections + attention + feed_forward)
    return MULTIPLY_ADD * (layers + n_unembedded * size.d_model * size.d_vocab)


def staircase_flops(size: ModelSize, *, n_rows: int, write_layers: Sequence[int], n_past: float | int) -> float | int:
    """Operations of the blocks in a pass of `hooks.shared_prefix`: `n_rows` rows join after every write layer, packed.

    Below the first write layer one row runs; in a layer above w of them w packs for every `MOST_PACKED` rows, each with
    a copy of the ungrafted row.

    >>> size = ModelSize(2, 4, 2, 2, 8, 10, 1, gated=True)
    >>> one = pass_flops(size, n_new=1, n_past=3, n_layers=1, n_unembedded=0)
    >>> above = pass_flops(size, n_new=6, n_past=3, n_layers=1, n_unembedded=0)
    >>> staircase_flops(size, n_rows=5, write_layers=[0], n_past=3) == one + above
    True
    """
    n_packs = -(-n_rows // MOST_PACKED)
    width = -(-n_rows // n_packs)
    one, pack = (pass_flops(size, n_new=n_new, n_past=n_past, n_layers=1, n_unembedded=0) for n_new in (1, width + 1))
    below = [sum(write < layer for write in write_layers) for layer in range(size.n_layers)]
    return sum(n * n_packs * pack or one for n in below)


def ridge_flops(n_rows: float | int, d_source: int, d_target: int, *, folds: int) -> float | int:
    """Operations of `alignment.fit_ridge` with the penalty chosen in folds: decompositions and products."""
    training, held_out = n_rows * (folds - 1) / folds, n_rows / folds
    rank = min(training, d_source)
    products = held_out * rank * (d_source + rank + d_target) + rank * d_target * (training + rank)
    of_all = n_rows * min(n_rows, d_source) * d_target + min(n_rows, d_source) * d_source * d_target
    decompositions = folds * _svd_flops(training, d_source) + _svd_flops(n_rows, d_source)
    return decompositions + MULTIPLY_ADD * (folds * products + of_all)


def predictability_flops(
    n_rows: float | int, d_source: int, d_target: int, *, n_targets: int, folds: int
) -> float | int:
    """Operations of `similarity.predictability_of_each`: decompositions of a source, products with each target."""
    splits = 2 * folds  # one to judge and one to choose in, for each fold
    source = n_rows * d_source**2 + splits * 2 * d_source**3
    target = n_rows * d_source * d_target + splits * 3 * d_source**2 * d_target
    return splits * EIGH * d_source**3 + MULTIPLY_ADD * (source + n_targets * target)


def _svd_flops(n_rows: float | int, width: float | int) -> float | int:
    longer, shorter = max(n_rows, width), min(n_rows, width)
    return 6 * longer * shorter**2 + 20 * shorter**3


def flops(passes: Sequence[Pass]) -> float:
    """Operations of the recorded passes: forward passes over all their rows (`pass_flops`), and further products."""
    sizes: dict[int, ModelSize] = {}
    total = 0
    for each in passes:
        size = sizes.setdefault(id(each.model), ModelSize.of(each.model))
        total += each.rows * pass_flops(
            size,
            n_new=each.n_new,
            n_past=each.n_past,
            n_layers=each.n_layers,
            n_unembedded=each.n_unembedded,
        )
        total += MULTIPLY_ADD * each.n_extra
    return float(total)


def paper_forward_flops(size: ModelSize, prompt: int) -> float:
    """X(P) = 4PVD + L(8PDKH + 4P^2KH + 3HP^2 + 4PDF): one forward pass over a prompt of P tokens.

    Source: Ramesh & Li 2025, arXiv:2501.14082. It covers neither
    grouped-query attention nor a gated feed-forward block, and counts the embedding as a product.
    """
    embedding = 4 * prompt * size.d_vocab * size.d_model
    return float(embedding + size.n_layers * _paper_layer(size, prompt))


def paper_text_flops(
    sender: ModelSize,
    receiver: ModelSize,
    *,
    prompt: int,
    message: float | int,
    reply: float | int,
    own_prompt: int | None = None,
) -> float:
    """M X_A(P) + T X_B(P + M): the sender generates M tokens, the receiver T, each with a full pass and no cache.

    `own_prompt` is the length of the receiver's own prompt where it differs from the sender's. Source: Ramesh & Li
    2025, arXiv:2501.14082.
    """
    n_receiver = prompt if own_prompt is None else own_prompt
    written = message * paper_forward_flops(sender, prompt)
    return written + reply * paper_forward_flops(receiver, n_receiver + round(message))


def paper_activation_flops(
    sender: ModelSize, receiver: ModelSize, *, prompt: int, read: int, reply: float | int, own_prompt: int | None = None
) -> float:
    """2PVD + (read + 1)(8PDKH + 4P^2KH + 3HP^2 + 4PDF) + T X_B(P): the sender stops after block `read`.

    `read` counts layers from 0, as everywhere here; the paper's k is one more. `own_prompt` is the length of the
    receiver's own prompt where it differs from the sender's. Source: Ramesh & Li 2025, arXiv:2501.14082.
    """
    n_receiver = prompt if own_prompt is None else own_prompt
    sent = 2 * prompt * sender.d_vocab * sender.d_model + (read + 1) * _paper_layer(sender, prompt)
    return float(sent) + reply * paper_forward_flops(receiver, n_receiver)


def _paper_layer(size: ModelSize, prompt: int) -> int:
    d, k, h, f = size.d_model, size.d_head, size.n_heads, size.d_mlp
    return 8 * prompt * d * k * h + 4 * prompt**2 * k * h + 3 * h * prompt**2 + 4 * prompt * d * f
