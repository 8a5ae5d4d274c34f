"""`latentcomm list` and `latentcomm models`: the names that options take."""

from collections.abc import Callable, Mapping, Sequence

from latentcomm._core.names import check_name

__all__ = ["list_names", "models"]


def list_names(arguments: Sequence[str]) -> None:
    """List the names that options take: tasks, channels, fusions, controls, stops or models."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: latentcomm list {'|'.join(LISTS)}\n\n{list_names.__doc__}")
        return
    _refuse("list takes one name", arguments[1:])
    for name, description in LISTS[check_name("list", arguments[0], LISTS)]().items():
        print(f"{name:<26}{description}".rstrip())


def models(arguments: Sequence[str]) -> None:
    """List the built-in models: size, licence, source, and whether they are on disk."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: latentcomm models\n\n{models.__doc__}")
        return
    _refuse("models takes nothing", arguments)
    from latentcomm.models import builtin
    from latentcomm.reporting.terminal import console, print_table

    rows = [
        {
            "name": entry.name,
            "parameters": entry.parameters,
            "download": f"{entry.megabytes} MB",
            "licence": entry.licence,
            "on disk": "yes" if builtin.is_on_disk(entry) else "no",
            "source": entry.source,
        }
        for entry in builtin.BUILT_IN.values()
    ]
    print_table(rows, console(160), text=rows[0], wrapped=rows[0])
    print(f"cached in {builtin.cache_folder()}; any hub id, local directory or .gguf file can be given as well")


def _refuse(what: str, more: Sequence[str]) -> None:
    if more:
        raise ValueError(f"{what}, and {' '.join(more)} is given as well; leave it out")


def _tasks() -> dict[str, str]:
    from latentcomm.tasks.catalogue import TASKS

    return {name.replace("_", "-"): _sentence(make) for name, make in TASKS.items()}


def _channels() -> dict[str, str]:
    from latentcomm.channels.catalogue import ABOUT_LEARNED, CHANNELS

    trained = {name: f"{about} (`latentcomm train` first)" for name, about in ABOUT_LEARNED.items()}
    return {name: entry.about for name, entry in CHANNELS.items()} | trained


def _fusions() -> dict[str, str]:
    from latentcomm.fusion import BY_NAME

    return {name: repr(fusion) for name, fusion in BY_NAME.items()}


def _controls() -> dict[str, str]:
    from latentcomm.experiments.cascade import votes
    from latentcomm.experiments.cascade.trials import SELF_CONSISTENCY
    from latentcomm.experiments.controls import CONTROLS

    vote = {SELF_CONSISTENCY: f"Of cascade: {_sentence(votes)[0].lower()}{_sentence(votes)[1:]}"}
    return {name: _sentence(control) for name, control in CONTROLS.items()} | vote


def _stops() -> dict[str, str]:
    from latentcomm.experiments.cascade.stops import STOPS

    return {name: _sentence(type(stop)) for name, stop in STOPS.items()}


def _models() -> dict[str, str]:
    from latentcomm.models.builtin import BUILT_IN

    return {name: f"{entry.parameters} parameters, {entry.licence}" for name, entry in BUILT_IN.items()}


def _sentence(documented: object) -> str:
    """The first sentence of a docstring."""
    return " ".join((documented.__doc__ or "").partition("\n\n")[0].split())


LISTS: Mapping[str, Callable[[], dict[str, str]]] = {
    "tasks": _tasks,
    "channels": _channels,
    "fusions": _fusions,
    "controls": _controls,
    "stops": _stops,
    "models": _models,
}
