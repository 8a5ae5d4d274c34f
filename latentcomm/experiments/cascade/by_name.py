"""Hand-offs and stops by name, for the command line and the analyses."""

from collections.abc import Sequence

from latentcomm._core.names import check_name
from latentcomm._core.progress import say
from latentcomm.experiments.cascade.fitting import fit_hand_off
from latentcomm.experiments.cascade.hand_offs import EMBEDDINGS, HandOff, KVHandOff, TextHandOff
from latentcomm.experiments.cascade.stops import STOPS, Oracle, Stop
from latentcomm.experiments.cascade.trials import CONTROLS, RENAMED
from latentcomm.models import Model

TEXT, LATENT, GRAFT, KV = "text", "latent", "graft", "kv"
HAND_OFFS = (TEXT, LATENT, GRAFT, KV)
"""As text; as states instead of embeddings, without text; as text with states grafted; as keys and values."""
DEPTH = 2 / 3
"""The share of the blocks after which states are read, and grafted, by default: chosen before any item was run."""


def stops_named(names: Sequence[str]) -> dict[str, Stop | Oracle]:
    """The stops of `stops.STOPS` with these names, or with names that these are prefixes of.

    Raises:
        ValueError: none, a name that fits no stop or more than one, or a stop named twice.

    >>> list(stops_named(["sentence", "entropy-drop"]))
    ['sentence-end', 'entropy-drop']
    """
    if not names:
        raise ValueError(f"stop names none; choose among {', '.join(STOPS)}")
    found: dict[str, Stop | Oracle] = {}
    for name in names:
        fits = [name] if name in STOPS else [each for each in STOPS if name and each.startswith(name)]
        if len(fits) != 1:
            check_name("stop", name, STOPS)
            raise ValueError(f"stop {name!r} begins {' and '.join(fits)}; give more of the name")
        if fits[0] in found:
            raise ValueError(f"stop names {fits[0]} twice; name each once")
        found[fits[0]] = STOPS[fits[0]]
    return found


def controls_named(names: Sequence[str]) -> tuple[str, ...]:
    """The controls with these names; names of version 0.1 are taken for one more release, and the new ones are printed.

    Raises:
        ValueError: an unknown name.

    >>> controls_named(["shuffled", "zero"])
    ('shuffled', 'zero')
    """
    for name in names:
        if name in RENAMED:
            say(f"the control {name!r} is called {RENAMED[name]!r} now; the old name goes in the next release")
    return tuple(check_name("control", RENAMED.get(name, name), CONTROLS) for name in names)


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

    `read_layer` is a block of the large model, `write_layer` the block of the small one after which a graft is written;
    by default those at two thirds of their depth (`depth_of`). The documents must not contain the items.

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
            target = EMBEDDINGS if name == LATENT else write
            found[name] = fit_hand_off(
                large, small, documents, read=read, write=target, measures_drift=measures_drift, name=name, seed=seed
            )
    return found


def refuse_hand_offs(names: Sequence[str]) -> None:
    """Refuse unknown names of hand-offs, before a model is loaded.

    Raises:
        ValueError: none is named, an unknown one, or one twice.
    """
    for name in names:
        check_name("hand-off", name, HAND_OFFS)
    if not names:
        raise ValueError(f"no hand-off is named; choose among {', '.join(HAND_OFFS)}")
    if repeated := [name for number, name in enumerate(names) if name in names[:number]]:
        raise ValueError(f"hand_off names {repeated[0]} twice; name each once")


def depth_of(model: Model) -> int:
    """The block, counted from 0, at two thirds of a model's depth."""
    return max(0, round(DEPTH * model.n_layers) - 1)
