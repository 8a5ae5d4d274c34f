"""Hand-offs and stops by name: what the command line and the analyses make of a list of words."""

from collections.abc import Sequence

from latentcomm.experiments.cascade.fitting import fit_hand_off
from latentcomm.experiments.cascade.hand_offs import EMBEDDINGS, HandOff, KVHandOff, TextHandOff
from latentcomm.experiments.cascade.stops import STOPS, Oracle, Stop
from latentcomm.models import Model

TEXT, LATENT, GRAFT, KV = "text", "latent", "graft", "kv"
HAND_OFFS = (TEXT, LATENT, GRAFT, KV)
"""As text; as states in place of embeddings, without text; as text with states grafted; as keys and values."""
DEPTH = 2 / 3
"""The share of the blocks after which states are read, and grafted, where no layer is given: fixed before any item."""


def stops_named(names: Sequence[str]) -> dict[str, Stop | Oracle]:
    """The stops of `stops.STOPS` with these names, or with names that begin so.

    Raises:
        ValueError: no stop, or more than one, is called that.

    >>> list(stops_named(["sentence", "entropy-drop"]))
    ['sentence-end', 'entropy-drop']
    """
    found: dict[str, Stop | Oracle] = {}
    for name in names:
        fits = [name] if name in STOPS else [each for each in STOPS if name and each.startswith(name)]
        if len(fits) != 1:
            raise ValueError(f"there is no stop {name!r}; choose among {', '.join(STOPS)}")
        found[fits[0]] = STOPS[fits[0]]
    return found


def hand_offs_named(
    names: Sequence[str],
    large: Model,
    small: Model,
    documents: Sequence[str] | None = None,
    *,
    read_layer: int | None = None,
    write_layer: int | None = None,
    measures_drift: bool = True,
    seed: int = 0,
) -> dict[str, HandOff]:
    """The hand-offs of `HAND_OFFS` with these names; maps are fitted on the documents, the packaged corpus by default.

    `read_layer` is the large model's, `write_layer` the small one's that a graft is written after; by default those at
    two thirds of their depth (`depth_of`). No map should be fitted on texts that hold the items.

    Raises:
        ValueError: an unknown name, or what `fit_hand_off` refuses.
    """
    refuse_hand_offs(names)
    read = depth_of(large) if read_layer is None else read_layer
    write = depth_of(small) if write_layer is None else write_layer
    found: dict[str, HandOff] = {}
    for name in dict.fromkeys(names):
        if name == TEXT:
            found[name] = TextHandOff()
        elif name == KV:
            found[name] = KVHandOff()
        else:
            place = EMBEDDINGS if name == LATENT else write
            found[name] = fit_hand_off(
                large, small, documents, read=read, write=place, measures_drift=measures_drift, name=name, seed=seed
            )
    return found


def refuse_hand_offs(names: Sequence[str]) -> None:
    """Refuse names that no hand-off has, before a model is loaded.

    Raises:
        ValueError: none is named, or an unknown one.
    """
    if unknown := [name for name in names if name not in HAND_OFFS]:
        raise ValueError(f"there is no hand-off {unknown[0]!r}; choose among {', '.join(HAND_OFFS)}")
    if not names:
        raise ValueError(f"no hand-off is named; choose among {', '.join(HAND_OFFS)}")


def depth_of(model: Model) -> int:
    """The block, counted from 0, after which two thirds of a model's blocks are done."""
    return max(0, round(DEPTH * model.n_layers) - 1)
