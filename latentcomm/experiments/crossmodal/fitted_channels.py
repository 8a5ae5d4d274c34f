"""Every channel of a part, fitted on its fitting pictures at first use, and cached where a folder is given."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.files import digest
from latentcomm._core.records import Records
from latentcomm.alignment import PENALTY_RATIOS, AffineMap
from latentcomm.channels import Channel, Silent, Skyline
from latentcomm.channels.training.trainer import Schedule, train
from latentcomm.drift import DriftReference, fit_drift_reference
from latentcomm.drift.fitting import FEWEST_ROWS
from latentcomm.experiments.crossmodal.captions import Caption, NearestLabel, NearestPicture, NearestWords
from latentcomm.experiments.crossmodal.channels import Eye, SoftPrompt, VisionGraft
from latentcomm.experiments.crossmodal.choose_layers import (
    CHOSEN_ON,
    LATE,
    MOST_CHOSEN_ON,
    choose_block,
    choose_write_layer,
)
from latentcomm.experiments.crossmodal.diagnostics import combined_drift
from latentcomm.experiments.crossmodal.fitting import (
    FOLDS,
    SoftPromptLearner,
    caption_embeddings,
    caption_length,
    caption_tokens,
    fit_soft_prompt,
    fit_vision_graft,
    informed_states,
)
from latentcomm.experiments.crossmodal.pictures import PictureSet
from latentcomm.experiments.crossmodal.probe import PROBE, fit_answer_probe, probe_trials
from latentcomm.experiments.crossmodal.questions import Question, picture_task
from latentcomm.experiments.crossmodal.splits import Part
from latentcomm.experiments.evaluation import Trial
from latentcomm.models import Model
from latentcomm.models.prompts import Template
from latentcomm.models.sites import Site
from latentcomm.models.vision import VisionSender, VisionSite
from latentcomm.tasks.base import Task, draw_choices

TRAINED = "soft_prompt_trained"
TRAINED_CONTROL = "trained_other_pictures"
GRAFT_CONTROL = "graft_shuffled_names"
GRAFT_BLANK = "graft_random_encoder"
CHANNELS = (
    "blind",
    "oracle",
    "soft_prompt",
    TRAINED,
    "graft",
    "caption",
    "caption_by_map",
    "caption_by_word",
    "random_encoder",
    GRAFT_BLANK,
    "shuffled_names",
    GRAFT_CONTROL,
    TRAINED_CONTROL,
    PROBE,
)
"""In the order of tables; see `run.cross_modal`."""
USUAL = tuple(name for name in CHANNELS if name not in (TRAINED, TRAINED_CONTROL))
"""Those that need no training through the receiver."""
FITTED_CONTROLS = ("random_encoder", GRAFT_BLANK, "shuffled_names", GRAFT_CONTROL, TRAINED_CONTROL)
"""Channels that are controls themselves: they are not run with other pictures' messages."""
BATCH, RATE = 8, 3e-4
"""Batch size and learning rate of the training through the receiver."""
DRIFT_STATES = 2_000
"""Most of the receiver's own states that drift is measured against."""
FITTING_RULES = (FOLDS, CHOSEN_ON, LATE, MOST_CHOSEN_ON, PENALTY_RATIOS, BATCH, RATE)
"""What determines maps besides the plan: maps cached under other rules are fitted anew."""


@dataclass(frozen=True)
class Plan:
    """How pictures are sent and which questions are run.

    Attributes:
        channels: of `CHANNELS`; "blind" is always run. "probe" is not a channel: it has no receiver.
        block: of the encoder; None chooses it by held-out fit among the fitting pictures.
        write_layer: of the graft; None chooses it by accuracy on held-out fitting pictures.
        template: of the prompts.
        n_test: most test pictures of each part; None takes all.
        reply_tokens: of a reply.
        train_steps: updates of the soft prompt that is trained through the receiver.
        seed: of all that is drawn.

    Raises:
        ValueError: an unknown channel or one named twice, or a number below 1.
    """

    channels: tuple[str, ...] = USUAL
    block: int | None = None
    write_layer: int | None = None
    template: Template = "raw"
    n_test: int | None = None
    reply_tokens: int = 4
    train_steps: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := [name for name in self.channels if name not in CHANNELS]:
            raise ValueError(f"there is no channel {unknown[0]!r} for pictures; choose among {', '.join(CHANNELS)}")
        if len(set(self.channels)) < len(self.channels):
            raise ValueError(f"a channel is named twice in {', '.join(self.channels)}; name each once")
        if self.reply_tokens < 1 or self.train_steps < 1 or (self.n_test is not None and self.n_test < 1):
            raise ValueError(
                f"reply_tokens is {self.reply_tokens}, train_steps {self.train_steps} and n_test {self.n_test}; "
                "each must be at least 1"
            )


@dataclass(frozen=True, eq=False)
class Fitted:
    """What is fitted on the fitting pictures of a part, each map once and only if a channel needs it.

    Attributes:
        folder: where maps and states are cached; None caches nothing.
    """

    vision: VisionSender
    receiver: Model
    part: Part
    plan: Plan
    folder: Path | None = None
    progress: bool = False

    def channels(self) -> list[Channel]:
        """The channels that the plan names, in the order of `CHANNELS`."""
        makers: Mapping[str, Callable[[], Channel]] = {
            "blind": lambda: Silent("blind"),
            "oracle": lambda: Skyline("oracle"),
            "soft_prompt": lambda: SoftPrompt("soft_prompt", self.eye, self.mapping, self.n_tokens),
            TRAINED: lambda: SoftPrompt(TRAINED, self.eye, self._trained(), self.n_tokens),
            "graft": lambda: VisionGraft("graft", self.eye, Site(self.write_layer), self._grafts("graft")),
            "caption": lambda: Caption("caption", self.eye, NearestPicture(self.vectors, self._fitting_captions)),
            "caption_by_map": lambda: Caption("caption_by_map", self.eye, self._nearest_label()),
            "caption_by_word": lambda: Caption("caption_by_word", self.eye, self._nearest_words()),
            "random_encoder": self._random_encoder,
            GRAFT_BLANK: self._random_graft,
            "shuffled_names": lambda: SoftPrompt("shuffled_names", self.eye, self._shuffled_names(), self.n_tokens),
            GRAFT_CONTROL: lambda: VisionGraft(
                GRAFT_CONTROL, self.eye, Site(self.write_layer), self._grafts(GRAFT_CONTROL)
            ),
            TRAINED_CONTROL: lambda: SoftPrompt(TRAINED_CONTROL, self.eye, self._trained_control(), self.n_tokens),
        }
        return [make() for name, make in makers.items() if name in ("blind", *self.plan.channels)]

    def probed(self, question: Question, task: Task) -> list[Trial]:
        """What a linear classifier of the same vectors answers, fitted to what training through the receiver sees.

        See `probe.fit_answer_probe`; the task is that of the test pictures.
        """
        plan = self.plan
        probe = fit_answer_probe(self.vectors, self.part.fitting, question, template=plan.template, seed=plan.seed)
        vectors = self._test_vectors[self.asked.places([item.sender for item in task.items])]
        return probe_trials(probe, vectors, task, draw_choices(task, self.receiver.first_token, seed=plan.seed))

    def chosen(self) -> dict[str, int]:
        """The block that is read, the layer that a graft writes into, and the block of the untrained encoder."""
        if not set(self.plan.channels) - {"blind", "oracle"}:
            return {}
        found = {"block": self.block}
        if {"graft", GRAFT_CONTROL, GRAFT_BLANK} & set(self.plan.channels):
            found["write_layer"] = self.write_layer
        if {"random_encoder", GRAFT_BLANK} & set(self.plan.channels):
            found["random_encoder_block"] = self._random_block
        return found

    def drift(self, channel: Channel, question: Question) -> dict[str, float]:
        """How far the output of a channel's map is from the receiver's own states; NaN without a map or enough states.

        Soft tokens are compared with rows of the receiver's embedding table, grafts with its states at that layer after
        the true caption and a question about a fitting picture. See `diagnostics.combined_drift`.
        """
        if not isinstance(channel, SoftPrompt | VisionGraft):
            return combined_drift(torch.empty(0, self.receiver.d_model), None)
        maps = channel.mapping if isinstance(channel, SoftPrompt) else channel.maps[question.name]
        key = digest(maps, self.asked, channel.name, question.name, DRIFT_STATES)[:16]
        return self._cache.values(f"drift-{key}", lambda: self._drift(channel, maps, question))

    def _drift(self, channel: SoftPrompt | VisionGraft, mapping: AffineMap, question: Question) -> dict[str, float]:
        images = [each.image for each in self.asked if question.fact in each.facts]
        mapped = mapping(channel.eye.vision.read(images, channel.eye.site).float())
        if isinstance(channel, SoftPrompt):
            return combined_drift(mapped.reshape(-1, self.receiver.d_model), self._embedding_reference)
        return combined_drift(mapped, self._state_reference)

    @cached_property
    def _embedding_reference(self) -> DriftReference | None:
        table = self.receiver.embedding_table.detach().float().cpu()
        table = table[table.norm(dim=1) > 0]
        rows = torch.randperm(len(table), generator=torch.Generator().manual_seed(self.plan.seed))[:DRIFT_STATES]
        return self._reference(table if len(table) <= DRIFT_STATES else table[rows])

    @cached_property
    def _state_reference(self) -> DriftReference | None:
        write, part = Site(self.write_layer), self.part
        tasks = [picture_task(part.fitting, question, template=self.plan.template) for question in part.questions]
        states = [informed_states(self.receiver, task, [write])[write] for task in tasks]
        return self._reference(torch.cat(states).unique(dim=0)[:DRIFT_STATES])

    def _reference(self, own: Float[Tensor, "state d_receiver"]) -> DriftReference | None:
        return fit_drift_reference(own, seed=self.plan.seed) if len(own) >= FEWEST_ROWS else None

    @cached_property
    def asked(self) -> PictureSet:
        """The test pictures."""
        testing = self.part.testing
        return PictureSet(testing.name, testing.pictures[: self.plan.n_test])

    @cached_property
    def n_tokens(self) -> int:
        """Soft tokens: as many as the longest caption has."""
        return caption_length(self.receiver, self._captions)

    @cached_property
    def seen(self) -> Float[Tensor, "layer item d_read"]:
        """The vectors of the fitting pictures after every block."""
        return self._cache.tensors("seen", lambda: {"states": self._states(self.vision)})["states"]

    @cached_property
    def block(self) -> int:
        """The block that is read."""
        if self.plan.block is not None:
            self.vision.check_block(self.plan.block)
            return self.plan.block
        return self._cache.values("block", lambda: self._choose_block(self.seen))

    @cached_property
    def write_layer(self) -> int:
        """The layer that a graft writes into."""
        if self.plan.write_layer is not None:
            return self.plan.write_layer
        return self._cache.values(
            "write_layer",
            lambda: choose_write_layer(
                self.vision, self.vectors, self.receiver, self.part, self.block,
                template=self.plan.template, seed=self.plan.seed,
            ),
        )  # fmt: skip

    @cached_property
    def site(self) -> VisionSite:
        """What of the encoder's states is sent."""
        return VisionSite(self.block, self.part.pooling, self.part.grid)

    @cached_property
    def eye(self) -> Eye:
        """The encoder and the test pictures that it sends."""
        return Eye(self.vision, self.asked, self.site)

    @cached_property
    def vectors(self) -> Float[Tensor, "item d_read"]:
        """The vectors of the fitting pictures after the block that is read."""
        block = self.block  # an invalid block is refused before the encoder runs on all pictures
        return self.seen[block].float()

    @cached_property
    def _test_vectors(self) -> Float[Tensor, "item d_read"]:
        """The vectors of the test pictures after the same block: read once for all questions."""
        return self.vision.read([each.image for each in self.asked], self.site).float()

    @cached_property
    def mapping(self) -> AffineMap:
        """From vectors to the embeddings of captions."""
        return self._cache.saved("soft_prompt", lambda: self._soft(self.vectors), AffineMap.load)

    @cached_property
    def _fitting_captions(self) -> tuple[str, ...]:
        return tuple(picture.caption for picture in self.part.fitting)

    @cached_property
    def _captions(self) -> tuple[str, ...]:
        """All captions that may describe a picture, each once."""
        return tuple(dict.fromkeys([*self._fitting_captions, *self.part.captions]))

    @cached_property
    def _cache(self) -> Records:
        plan, part = self.plan, self.part
        how = (plan.block, plan.write_layer, plan.template, plan.seed, part.pooling, part.grid, list(part.captions))
        how += FITTING_RULES
        return Records.of(self.folder, "maps", 1, self.vision, self.receiver, part.fitting, list(part.questions), *how)

    def _states(self, vision: VisionSender) -> Float[Tensor, "layer item d_read"]:
        images = [picture.image for picture in self.part.fitting]
        return vision.pooled(images, pooling=self.part.pooling, grid=self.part.grid)

    def _choose_block(self, seen: Float[Tensor, "layer item d_read"]) -> int:
        return choose_block(seen, self.receiver, self.part, n_tokens=self.n_tokens, seed=self.plan.seed)

    def _soft(self, rows: Float[Tensor, "item d_read"], shuffled: int | None = None) -> AffineMap:
        seed = self.plan.seed
        return fit_soft_prompt(
            rows, self.part.fitting, self.receiver, n_tokens=self.n_tokens, shuffled=shuffled, seed=seed
        )

    def _grafts(self, name: str) -> Mapping[str, AffineMap]:
        part, plan, write = self.part, self.plan, Site(self.write_layer)
        vectors = self._random_vectors if name == GRAFT_BLANK else self.vectors
        fitted = partial(
            fit_vision_graft, vectors, part.fitting, part.questions, self.receiver, [write],
            template=plan.template, shuffled=plan.seed if name == GRAFT_CONTROL else None, seed=plan.seed,
        )  # fmt: skip
        found = self._cache.tensors(name, lambda: _tensors_of(fitted()[write]))
        names = [question.name for question in part.questions]
        return {each: AffineMap(found[f"{each}.weight"], found[f"{each}.bias"]) for each in names}

    def _nearest_label(self) -> NearestLabel:
        known = caption_embeddings(self.receiver, self._captions, n_tokens=self.n_tokens)
        return NearestLabel(self.mapping, known, self._captions)

    def _nearest_words(self) -> NearestWords:
        rows = caption_tokens(self.receiver, self._captions, n_tokens=self.n_tokens)
        return NearestWords(
            self.mapping, self.receiver, tuple(tuple(dict.fromkeys(at)) for at in zip(*rows, strict=True))
        )

    def _random_encoder(self) -> SoftPrompt:
        """From an untrained encoder, with a map and a block of its own."""
        own = self._cache.saved("random_encoder", lambda: self._soft(self._random_vectors), AffineMap.load)
        return SoftPrompt("random_encoder", self._blank_eye, own, self.n_tokens)

    def _random_graft(self) -> VisionGraft:
        """From the same encoder and block, into the layer of the graft, with maps of its own."""
        own = self._grafts(GRAFT_BLANK)
        return VisionGraft(GRAFT_BLANK, self._blank_eye, Site(self.write_layer), own)

    @cached_property
    def _random_vectors(self) -> Float[Tensor, "item d_read"]:
        return self._random_seen[self._random_block].float()

    @cached_property
    def _blank_eye(self) -> Eye:
        return Eye(self._blank, self.asked, VisionSite(self._random_block, self.part.pooling, self.part.grid))

    @cached_property
    def _blank(self) -> VisionSender:
        return self.vision.randomised(seed=self.plan.seed)

    @cached_property
    def _random_seen(self) -> Float[Tensor, "layer item d_read"]:
        return self._cache.tensors("random_seen", lambda: {"states": self._states(self._blank)})["states"]

    @cached_property
    def _random_block(self) -> int:
        """Chosen as the trained encoder's is, on the states of this one."""
        if self.plan.block is not None:
            return self.plan.block
        return self._cache.values("random_encoder_block", lambda: self._choose_block(self._random_seen))

    def _shuffled_names(self) -> AffineMap:
        return self._cache.saved("shuffled_names", lambda: self._soft(self.vectors, self.plan.seed), AffineMap.load)

    def _trained(self) -> AffineMap:
        """The map trained through the receiver."""
        file = f"training-{self.plan.train_steps}.safetensors"
        return self._train(self.vectors, self.mapping, file=file, name="soft prompt")

    def _trained_control(self) -> AffineMap:
        """The control of `_trained`: each picture with the vector of another, from the map of shuffled names."""
        rows = self.vectors
        order = list(range(len(rows)))
        random.Random(f"other pictures:{self.plan.seed}").shuffle(order)
        rows = rows.clone().index_copy(0, torch.tensor(order), rows[torch.tensor([*order[1:], order[0]])])
        file = f"training-other-pictures-{self.plan.train_steps}.safetensors"
        return self._train(rows, self._shuffled_names(), file=file, name="soft prompt, other pictures")

    def _train(self, rows: Float[Tensor, "item d_read"], start: AffineMap, *, file: str, name: str) -> AffineMap:
        """The map from the fitting pictures' vectors after training from `start`; `file` is its checkpoint."""
        part, plan = self.part, self.plan
        tasks = [picture_task(part.fitting, question, template=plan.template) for question in part.questions]
        vectors = {each.id: row for each, row in zip(part.fitting, rows, strict=True)}
        learner = SoftPromptLearner.of(self.receiver, tasks, vectors, start)
        steps = plan.train_steps
        schedule = Schedule(steps=steps, batch_size=BATCH, learning_rate=RATE, warmup=steps // 20, seed=plan.seed)
        train(
            learner, schedule, frozen=[self.receiver],
            checkpoint=None if self._cache.folder is None else self._cache.folder / file, every=20,
            progress=self.progress, name=name,
        )  # fmt: skip
        return learner.mapping


def _tensors_of(maps: Mapping[str, AffineMap]) -> dict[str, Tensor]:
    """The maps' weights and biases by name, for one file: all of them or none."""
    return {f"{name}.{part}": getattr(each, part) for name, each in maps.items() for part in ("weight", "bias")}
