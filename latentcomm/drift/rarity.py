"""How rare a number is among those of held-out real states: two-sided, with tails, and over several numbers at once."""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["auroc", "combined_surprise", "held_out_surprise", "share_at_least", "surprise", "two_sided"]

TAIL_SHARE = 0.1
"""The share of the held-out scores at each end from which the scale of that tail is taken."""


def two_sided(scores: Float[Tensor, " row"], held_out: Float[Tensor, " real"]) -> Float[Tensor, " row"]:
    """Return the two-sided p-value of each score: 2 min(1 + #(h <= s), 1 + #(h >= s)) / (n + 1), at most 1.

    For a real state that is exchangeable with the n held-out ones it is at most alpha with probability alpha or less,
    for any distribution; the smallest possible value is 2 / (n + 1).

    Source: Vovk, Gammerman & Shafer 2005, "Algorithmic learning in a random world" (conformal p-values).

    >>> two_sided(torch.tensor([2.0, 9.0]), torch.tensor([1.0, 2.0, 3.0])).tolist()
    [1.0, 0.5]
    """
    lower, upper = _tails(scores, held_out.sort().values)
    return (2 * torch.minimum(lower, upper)).clamp(max=1.0)


def surprise(scores: Float[Tensor, " row"], held_out: Float[Tensor, " real"]) -> Float[Tensor, " row"]:
    """Return -log p (nats) of each score, where p continues to fall beyond the range of the held-out scores.

    Inside the range p is that of `two_sided`. Outside it is 2 / (n + 1) times exp(-(s - max) / scale), the exponential
    tail whose scale is the mean excess of the top tenth of held-out scores (likewise below). So two states beyond every
    real one can still be ranked; the rate of false alarms at a surprise is read off held-out states.

    Source: the mean excess as the exponential tail's scale: Pickands 1975, "Statistical inference using extreme order
    statistics".
    """
    ordered = held_out.sort().values
    lower, upper = _tails(scores, ordered)
    n_tail = max(1, int(TAIL_SHARE * len(ordered)))
    high = ordered[-n_tail:].mean() - ordered[-n_tail - 1]
    low = ordered[n_tail] - ordered[:n_tail].mean()
    log_upper = upper.log() - torch.where(scores > ordered[-1], (scores - ordered[-1]) / high, 0.0)
    log_lower = lower.log() - torch.where(scores < ordered[0], (ordered[0] - scores) / low, 0.0)
    two = torch.tensor(2.0, dtype=torch.float64).log()
    return (-two - torch.minimum(log_lower, log_upper)).clamp(min=0.0)


def held_out_surprise(held_out: Float[Tensor, " real"]) -> Float[Tensor, " real"]:
    """Return the surprise of each held-out score among the others: what a real state's is before it is seen.

    Leaving one out changes ranks by one everywhere and tails only at the two ends, where it is done outright.
    """
    n = len(held_out)
    ordered = held_out.sort().values
    lower, upper = _tails(held_out, ordered)
    inside = ((2 * torch.minimum(lower, upper) * (n + 1) - 2) / n).clamp(max=1.0)  # 1 + others = all that count it
    out = -inside.log()
    for extreme in {int(held_out.argmin()), int(held_out.argmax())}:
        others = torch.cat((held_out[:extreme], held_out[extreme + 1 :]))
        out[extreme] = surprise(held_out[extreme][None], others)[0]
    return out


def combined_surprise(each: Float[Tensor, "row detector"]) -> Float[Tensor, " row"]:
    """Return the largest surprise of a row, -log of its smallest p-value (min-p): one loud detector is enough.

    Source: Tippett 1931, "The methods of statistics".
    """
    return each.amax(1)


def share_at_least(values: Float[Tensor, " row"], real: Float[Tensor, " real"]) -> Float[Tensor, " row"]:
    """Return (1 + number of real values at least as large) / (n + 1): the p-value of a large value.

    >>> share_at_least(torch.tensor([3.0]), torch.tensor([1.0, 2.0, 4.0])).tolist()
    [0.5]
    """
    return _tails(values, real.sort().values)[1]


def auroc(on: Float[Tensor, " on"], off: Float[Tensor, " off"]) -> float:
    """Return the probability that an off-manifold score is above a real one, ties counted half.

    Source: Mann & Whitney 1947 (area under the ROC curve as a rank statistic).

    Raises:
        ValueError: there are no scores of one kind.

    >>> auroc(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0]))
    0.875
    """
    if len(on) == 0 or len(off) == 0:
        raise ValueError(f"{len(on)} real and {len(off)} other scores; an AUROC needs some of both")
    ordered = on.sort().values
    below = torch.searchsorted(ordered, off.contiguous(), right=False)
    up_to = torch.searchsorted(ordered, off.contiguous(), right=True)
    return float((below + up_to).to(torch.float64).mean() / (2 * len(on)))


def _tails(
    scores: Float[Tensor, " row"], ordered: Float[Tensor, " real"]
) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
    """(1 + #(h <= s)) / (n + 1) and (1 + #(h >= s)) / (n + 1), in float64."""
    n, scores = len(ordered), scores.contiguous()
    up_to = torch.searchsorted(ordered, scores, right=True)
    below = torch.searchsorted(ordered, scores, right=False)
    return (1 + up_to).to(torch.float64) / (n + 1), (1 + n - below).to(torch.float64) / (n + 1)
