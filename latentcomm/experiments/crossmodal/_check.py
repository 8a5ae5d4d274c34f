"""The check of `CrossModalSettings` before the first weight is read."""

from dataclasses import dataclass

from latentcomm.experiments._demand import Side
from latentcomm.experiments.crossmodal.digits import INKS, digit_halves
from latentcomm.experiments.crossmodal.picture_folder import counted_part, folder_parts, read_folder, recoloured_part
from latentcomm.experiments.crossmodal.run import USUAL, Plan
from latentcomm.experiments.crossmodal.settings import DIGITS, CrossModalSettings
from latentcomm.experiments.crossmodal.small_vit import SIZES
from latentcomm.experiments.crossmodal.splits import Part, digit_parts
from latentcomm.experiments.preflight import Checks
from latentcomm.experiments.settings import listed
from latentcomm.models import ModelShape
from latentcomm.models.vision import DTYPES

__all__ = ["CrossModalInputs", "check_crossmodal"]


@dataclass(frozen=True, eq=False)
class CrossModalInputs:
    """What a cross-modal run has besides its settings and its models.

    Attributes:
        plan: how pictures are sent.
        parts: pictures for fitting and for testing.
    """

    plan: Plan
    parts: tuple[Part, ...]


def check_crossmodal(settings: CrossModalSettings, checks: Checks) -> CrossModalInputs | None:
    """What the run has; None where something is refused."""
    plan = checks.of(
        Plan,
        channels=tuple(name.replace("-", "_") for name in listed(settings.channels)) or USUAL,
        block=settings.block,
        write_layer=settings.write_layer,
        template=settings.prompted,
        n_test=settings.n_test,
        reply_tokens=settings.reply_tokens,
        train_steps=settings.train_steps,
        seed=settings.seed,
    )
    receiver = checks.job.receiver
    side = checks.named(settings.receiver) if receiver is None else Side.in_memory(receiver)
    checks.template(side)
    checks.layers("write_layer", side)
    encoder = None
    if settings.sender and checks.job.sender is None:
        encoder = checks.named(settings.sender, tokenized=False)
        taken = [str(each).removeprefix("torch.") for each in DTYPES]
        checks.refuse(
            f"dtype is {settings.dtype}; encoders run in {' or '.join(taken)}", when=settings.dtype not in taken
        )
    elif checks.job.sender is None:
        encoder = Side("the encoder of digits", ModelShape("digits", n_layers=SIZES["num_hidden_layers"]), None)
    checks.layers("block", encoder)
    checks.weights(side, encoder)
    if settings.data == DIGITS:
        halves = digit_halves(seed=settings.seed)
        for option, half, what in (("n_fitting", halves.fitting, "fitting"), ("n_test", halves.testing, "test")):
            checks.at_most(option, len(half) * len(INKS), f"the {what} half of the digits", "different pictures")
    if checks.refusals:
        return None
    parts = checks.of(_parts, settings, named=checks.job.sender is not None)
    if parts is None or plan is None:
        return None
    for part in parts:
        n_tested = min(settings.n_test, len(part.testing))
        questions = ", ".join(question.name for question in part.questions)
        checks.work.append(
            f"{part.name}: {questions}; {len(part.fitting)} pictures for fitting, {n_tested} for testing"
        )
        rows = n_tested * len(part.questions) * 4 * len(plan.channels)
        checks.writes(side, rows, prompt=10, n_tokens=settings.reply_tokens)
    return CrossModalInputs(plan, parts)


def _parts(settings: CrossModalSettings, *, named: bool) -> tuple[Part, ...]:
    n_composed = max(8, round(0.6 * settings.n_fitting))
    sizes = {"n_testing": settings.n_test, "seed": settings.seed}
    if settings.data == DIGITS:
        return tuple(digit_parts(n_fitting=settings.n_fitting, n_composed=n_composed, **sizes))
    if not settings.sender and not named:
        raise ValueError("only digits come with an encoder; name one as sender, a directory or a hub id")
    pictures = read_folder(
        settings.data, n_pictures=settings.n_pictures or None, seed=settings.seed,
        skip_unreadable=settings.skip_unreadable,
    )  # fmt: skip
    parts = tuple(folder_parts(pictures, seed=settings.seed))
    if not settings.composed:
        return parts
    sizes |= {"n_fitting": n_composed}
    return (*parts, counted_part(pictures, **sizes), recoloured_part(pictures, **sizes))
