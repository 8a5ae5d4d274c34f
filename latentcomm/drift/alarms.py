"""How often real states raise an alarm at a threshold taken from the real states of other documents."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm.alignment import row_folds
from latentcomm.drift.rarity import combined_surprise, held_out_surprise, share_at_least, surprise, two_sided

__all__ = ["alarm_shares"]

PARTS = 10
"""Parts of the documents: nine tenths set the thresholds for the other tenth."""


def alarm_shares(
    scores: Float[Tensor, "real detector"], groups: Int[Tensor, " real"], panel: Sequence[int], *, rate: float
) -> tuple[list[float], float]:
    """Return the share of real states that each detector, and the panel jointly, calls drifted at the rate.

    Each tenth of the documents (each document, where there are fewer than ten) is judged by the others alone, so these
    are the false alarms that states of new documents raise. `panel` numbers the columns of the joint verdict.

    Raises:
        ValueError: one document alone, or a rate that so many real states cannot resolve on two sides.

    >>> scores = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)).double()
    >>> each, jointly = alarm_shares(scores, torch.arange(1000), [0, 1], rate=0.05)
    >>> [0.03 < share < 0.07 for share in (*each, jointly)]
    [True, True, True]
    """
    n_documents = len(groups.unique())
    parts = row_folds(len(groups), folds=min(PARTS, n_documents), groups=groups)
    fewest = len(groups) - max(map(len, parts))
    if not 2 / (fewest + 1) <= rate < 1:
        raise ValueError(f"rate is {rate}; {fewest} real states resolve {2 / (fewest + 1):.2g} and more, below 1")
    alarms, joint_alarms = torch.zeros(scores.shape[1]), 0
    for part in parts:
        rest = torch.ones(len(groups), dtype=torch.bool)
        rest[part] = False
        real, judged = scores[rest].T.contiguous(), scores[part].T.contiguous()
        for column in range(len(real)):
            alarms[column] += int((two_sided(judged[column], real[column]) <= rate).sum())
        loud = combined_surprise(torch.stack([surprise(judged[column], real[column]) for column in panel], 1))
        usual = combined_surprise(torch.stack([held_out_surprise(real[column]) for column in panel], 1))
        joint_alarms += int((share_at_least(loud, usual) <= rate).sum())
    return (alarms / len(groups)).tolist(), joint_alarms / len(groups)
