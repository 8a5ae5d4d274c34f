"""`CompareSettings` run: channels by name on the same items, with what each costs."""

from latentcomm._core.files import digest
from latentcomm._core.progress import say
from latentcomm.experiments.compare._check import CompareInputs
from latentcomm.experiments.compare.report import audit_figure, comparison_figure, print_audit, print_comparison
from latentcomm.experiments.compare.run import compare_named, names_for
from latentcomm.experiments.compare.settings import CompareSettings
from latentcomm.experiments.job import Drawing, Job, Result
from latentcomm.experiments.train import check_unseen, load_folder, load_twins
from latentcomm.experiments.train_settings import TWIN
from latentcomm.models.facts import describe
from latentcomm.reporting.publish import plain
from latentcomm.reporting.terminal import Console

__all__ = ["run_compare"]

NOT_SHARED = ("channels", "controls", "weights", "audit")
"""Settings with which saved trials stay valid: another channel or control is added to what is there."""


def run_compare(settings: CompareSettings, job: Job, inputs: CompareInputs) -> Result:
    """Compare; see `compare_named`.

    Raises:
        ValueError: what the settings, the task or the comparison refuse.
    """
    task = inputs.task
    sender, receiver = job.pair(settings)
    trained = load_folder(settings.weights, sender, receiver) if settings.weights else {}
    twins = load_twins(settings.weights, sender, receiver) if settings.weights and settings.audit else {}
    for each in (*trained.values(), *twins.values()):
        check_unseen(each, task.split(seed=settings.seed)[1])
    names = list(inputs.names) or [*names_for(sender, receiver, alignment=settings.alignment), *trained]
    given = settings.decisive() | {"sender": sender.name, "receiver": receiver.name}
    shared = {name: value for name, value in given.items() if name not in NOT_SHARED}
    folder = job.saved(shared, task)
    comparison, cell = compare_named(
        names,
        sender,
        receiver,
        task,
        settings=settings,
        learned={name: each.channel for name, each in trained.items()},
        deranged_twins={name: each.channel for name, each in twins.items()},
        checkpoint=folder,
        progress=job.progress,
    )
    both = {**trained, **{f"{name}{TWIN}": each for name, each in twins.items()}}
    for name in trained if settings.audit else ():
        if name not in twins and name in names:
            say(f"{name} has no twin in {settings.weights}; `latentcomm train {name} --deranged` trains it")
    weights = {name: digest(each.weights) for name, each in both.items() if name.removesuffix(TWIN) in names}
    chosen = {} if cell is None else {"chosen_read_layer": cell[0], "chosen_write_layer": cell[1]}
    shown = plain(
        given
        | {"channels": names, "weights": weights, "sender_form": task.settings.get("sender_form", "")}
        | chosen
        | {"n_items": int(comparison.table["n"].iloc[0]), "n_choices": comparison.trials[0].n_choices}
    )

    figures = {"": Drawing(comparison_figure(comparison.table, shown), comparison.table)}
    if settings.audit and not comparison.audit.empty:
        figures |= {"_audit": Drawing(audit_figure(comparison.audit, shown), comparison.audit)}

    def summary(console: Console) -> None:
        if cell is not None:
            console.print(f"states are read after block {cell[0]} and written after block {cell[1]}", highlight=False)
        print_comparison(comparison, console)
        if "_audit" in figures:
            print_audit(comparison.audit, console)

    return Result(
        settings=settings,
        found=comparison,
        table=comparison.table,
        trials=comparison.trial_table(),
        figures=figures,
        shown=shown,
        models={"sender": describe(sender), "receiver": describe(receiver)},
        seconds=job.seconds,
        summary=summary,
    )
