"""How far what channels of pictures inject lies from the receiver's own states."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import product

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.files import digest
from latentcomm.alignment import AffineMap
from latentcomm.channels import Channel
from latentcomm.drift import DriftReference, fit_drift_reference
from latentcomm.drift.fitting import FEWEST_ROWS
from latentcomm.experiments.crossmodal.channels import SoftPrompt, VisionGraft
from latentcomm.experiments.crossmodal.diagnostics import combined_drift
from latentcomm.experiments.crossmodal.fitted_channels import Setup
from latentcomm.experiments.crossmodal.fitting import informed_states
from latentcomm.experiments.crossmodal.questions import Question, picture_task
from latentcomm.models.sites import Site

DRIFT_STATES = 2_000
"""Most of the receiver's own states that drift is measured against."""


def measure_drift(setup: Setup, channels: Sequence[Channel]) -> dict[tuple[str, str], dict[str, float]]:
    """How far each channel's map lies from the receiver's own states, by question and channel.

    NaN without a map or enough states. Soft tokens are compared with rows of the receiver's embedding table, grafts
    with its states at that layer after the true caption and a question about a fitting picture. See
    `diagnostics.combined_drift`.
    """
    nothing = combined_drift(torch.empty(0, setup.receiver.d_model), None)
    found = {(question.name, channel.name): nothing for question in setup.part.questions for channel in channels}
    soft = [channel for channel in channels if isinstance(channel, SoftPrompt)]
    grafts = [channel for channel in channels if isinstance(channel, VisionGraft)]
    if soft:
        found |= _drifts(setup, soft, partial(embedding_reference, setup))
    if grafts:
        found |= _drifts(setup, grafts, partial(state_reference, setup, grafts[0].write))
    return found


def _drifts(
    setup: Setup, channels: Sequence[SoftPrompt | VisionGraft], fit_reference: Callable[[], DriftReference | None]
) -> dict[tuple[str, str], dict[str, float]]:
    """The drift of channels that share a reference, which is fitted once and only where a number is not yet saved."""
    fit_once = cache(fit_reference)

    def measure(channel: SoftPrompt | VisionGraft, mapping: AffineMap, question: Question) -> dict[str, float]:
        images = [picture.image for picture in setup.tested if question.fact in picture.facts]
        mapped = mapping(channel.eye.vision.read(images, channel.eye.site).float())
        return combined_drift(
            rearrange(mapped, "item (token d_receiver) -> (item token) d_receiver", d_receiver=setup.receiver.d_model),
            fit_once(),
        )

    found = {}
    for question, channel in product(setup.part.questions, channels):
        mapping = channel.mapping if isinstance(channel, SoftPrompt) else channel.maps[question.name]
        key = digest(mapping, setup.tested, channel.name, question.name, DRIFT_STATES)[:16]
        make = partial(measure, channel, mapping, question)
        found[question.name, channel.name] = setup.records.values(f"drift-{key}", make)
    return found


def embedding_reference(setup: Setup) -> DriftReference | None:
    """The receiver's embedding table, or rows drawn from it."""
    table = setup.receiver.embedding_table.detach().float().cpu()
    table = table[table.norm(dim=1) > 0]
    rows = torch.randperm(len(table), generator=torch.Generator().manual_seed(setup.plan.seed))[:DRIFT_STATES]
    return _reference(setup, table if len(table) <= DRIFT_STATES else table[rows])


def state_reference(setup: Setup, write: Site) -> DriftReference | None:
    """The receiver's states at the site of a graft after the true caption and a question about a fitting picture."""
    part = setup.part
    tasks = [picture_task(part.fitting, question, template=setup.plan.template) for question in part.questions]
    states = [informed_states(setup.receiver, task, [write])[write] for task in tasks]
    return _reference(setup, torch.cat(states).unique(dim=0)[:DRIFT_STATES])


def _reference(setup: Setup, own: Float[Tensor, "state d_receiver"]) -> DriftReference | None:
    return fit_drift_reference(own, seed=setup.plan.seed) if len(own) >= FEWEST_ROWS else None
