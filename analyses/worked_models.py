"""Two small transformers for worked sums of keys, trained from scratch: one knows the keys, one arithmetic."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from latentcomm.channels.training.answers import TextLearner
from latentcomm.channels.training.trainer import Schedule, train
from latentcomm.models import Model
from latentcomm.models.small import save_model, small_model
from latentcomm.tasks.kv_math_worked import (
    HIGHEST,
    N_KEYS,
    TERMS,
    Worked,
    arithmetic_texts,
    knowing_texts,
    worked_words,
)


@dataclass(frozen=True)
class Size:
    """Of one of the two, and how long it learns.

    Attributes:
        n_layers, d_model, n_heads: of a Llama; the feed-forward blocks are four times as wide.
        n_texts: different texts that it learns from.
        steps, batch_size, learning_rate: updates, texts an update, and the rate after a warm-up, which then falls to
            a twentieth of it.
        weight_decay: AdamW's.
    """

    n_layers: int
    d_model: int
    n_heads: int = 4
    n_texts: int = 20_000
    steps: int = 3000
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.1


LARGE, SMALL = Size(3, 128, steps=2500, weight_decay=0.5), Size(2, 80, n_texts=60_000, steps=4000)
"""The larger has some four times as many weights in its blocks. Without much decay it learns the sums that it met by
heart, and those that it did not come out nearly right; the smaller has no room to."""


class WorkedPair(NamedTuple):
    """The model that knows the keys, and the one that knows only arithmetic."""

    large: Model
    small: Model


def worked_pair(
    folder: str | os.PathLike[str],
    *,
    n_keys: int = N_KEYS,
    highest: int = HIGHEST,
    n_terms: Sequence[int] = TERMS,
    large: Size = LARGE,
    small: Size = SMALL,
    seed: int = 0,
    progress: bool = False,
) -> WorkedPair:
    """A pair for `tasks.kv_math_worked` of the same options, trained on `knowing_texts` and `arithmetic_texts`.

    The large one can write a whole worked sum of keys that it never met together; the small one continues any whose
    numbers are in sight, and guesses the numbers of keys. Both have one vocabulary and unequal widths. The same options
    give the same weights. They are saved below `folder`: the trainings, which resume where they were stopped and are
    read back once they are done, and `large` and `small`, folders for `load_model`.

    Raises:
        ValueError: what the task refuses, or a folder with trainings of other options.
    """
    folder = Path(folder)
    words = worked_words(n_keys=n_keys, highest=highest, n_terms=n_terms)
    options = {"n_keys": n_keys, "highest": highest, "n_terms": n_terms, "seed": seed}
    texts = {
        "large": knowing_texts(large.n_texts, **options),
        "small": arithmetic_texts(small.n_texts, **options),
    }
    n_ctx = 2 * max(n_terms) * (max(n_terms) + 3)
    models = {}
    for number, (role, size) in enumerate((("large", large), ("small", small))):
        model = small_model(
            words,
            name=f"worked-sums-{role}",
            n_layers=size.n_layers,
            d_model=size.d_model,
            n_heads=size.n_heads,
            n_ctx=n_ctx,
            seed=2 * seed + number,
        )
        _trained(model, texts[role], size, seed, folder / f"{role}.safetensors", progress)
        save_model(model, folder / role)
        models[role] = model
    return WorkedPair(**models)


def _trained(model: Model, texts: Sequence[Worked], size: Size, seed: int, path: Path, progress: bool) -> None:
    learner = TextLearner(model, tuple(each.prompt for each in texts), tuple(each.reply for each in texts))
    schedule = Schedule(
        size.steps,
        size.batch_size,
        learning_rate=size.learning_rate,
        warmup=min(50, size.steps // 2),
        final_rate=0.05,
        weight_decay=size.weight_decay,
        seed=seed,
    )
    train(learner, schedule, checkpoint=path, progress=progress, name=model.name)
