"""The channels of a part, fitted on its fitting pictures step by step; a folder saves each step's result."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from latentcomm._core.names import check_name
from latentcomm._core.records import Records
from latentcomm.alignment import PENALTY_RATIOS, AffineMap
from latentcomm.channels import Channel, Silent, Skyline
from latentcomm.channels.training.trainer import Schedule, train
from latentcomm.experiments.crossmodal.captions import Caption, Captioner, NearestLabel, NearestPicture, NearestWords
from latentcomm.experiments.crossmodal.channels import Eye, SoftPrompt, VisionGraft
from latentcomm.experiments.crossmodal.choose_layers import (
    CHOSEN_ON,
    LATE,
    MOST_CHOSEN_ON,
    choose_block,
    choose_write_layer,
)
from latentcomm.experiments.crossmodal.fitting import (
    FOLDS,
    SoftPromptLearner,
    caption_embeddings,
    caption_length,
    caption_tokens,
    fit_soft_prompt,
    fit_vision_graft,
)
from latentcomm.experiments.crossmodal.pictures import PictureSet
from latentcomm.experiments.crossmodal.probe import PROBE, fit_answer_probe, probe_trials
from latentcomm.experiments.crossmodal.questions import Question, picture_task
from latentcomm.experiments.crossmodal.splits import Part
from latentcomm.experiments.evaluation import Trial
from latentcomm.models import Model
from latentcomm.models.chat import AnyTemplate
from latentcomm.models.sites import Site
from latentcomm.models.vision import VisionSender, VisionSite
from latentcomm.tasks.base import Task, draw_choices

GRAFT = "graft"
TRAINED = "soft_prompt_trained"
TRAINED_CONTROL = "trained_other_pictures"
GRAFT_CONTROL = "graft_shuffled_names"
GRAFT_BLANK = "graft_random_encoder"
CHANNELS = (
    "silent",
    "skyline",
    "soft_prompt",
    TRAINED,
    GRAFT,
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
RENAMED = {"blind": "silent", "oracle": "skyline"}
"""Names of earlier versions."""
USUAL = tuple(name for name in CHANNELS if name not in (TRAINED, TRAINED_CONTROL))
"""Those that need no training through the receiver."""
FITTED_CONTROLS = ("random_encoder", GRAFT_BLANK, "shuffled_names", GRAFT_CONTROL, TRAINED_CONTROL)
"""Channels that are controls themselves: they are not run with other pictures' messages."""
BATCH, RATE = 8, 3e-4
"""Batch size and learning rate of the training through the receiver."""
FITTING_RULES = (FOLDS, CHOSEN_ON, LATE, MOST_CHOSEN_ON, PENALTY_RATIOS, BATCH, RATE)
"""What determines maps besides the plan: maps cached under other rules are fitted anew."""
MAP_TENSORS = ("weight", "bias")


@dataclass(frozen=True)
class Plan:
    """How pictures are sent and which questions are run.

    Attributes:
        channels: of `CHANNELS`; "silent" is always run. "probe" is not a channel: it has no receiver.
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
    template: AnyTemplate = "raw"
    n_test: int | None = None
    reply_tokens: int = 4
    train_steps: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if renamed := [name for name in self.channels if name in RENAMED]:
            raise ValueError(f"the channel {renamed[0]!r} is called {RENAMED[renamed[0]]!r}, as in every command")
        for name in self.channels:
            check_name("channel for pictures", name, CHANNELS)
        if len(set(self.channels)) < len(self.channels):
            raise ValueError(f"a channel is named twice in {', '.join(self.channels)}; name each once")
        if self.reply_tokens < 1 or self.train_steps < 1 or (self.n_test is not None and self.n_test < 1):
            raise ValueError(
                f"reply_tokens is {self.reply_tokens}, train_steps {self.train_steps} and n_test {self.n_test}; "
                "each must be at least 1"
            )


@dataclass(frozen=True, eq=False)
class Setup:
    """What every step of the fitting takes: the models, the pictures, the plan, and where results are saved.

    Attributes:
        tested: the test pictures.
        captions: all captions that may describe a picture, each once.
        n_tokens: soft tokens of a message, as many as the longest caption has.
        records: where maps, states and chosen layers are saved; without a folder nothing is.
    """

    vision: VisionSender
    receiver: Model
    part: Part
    plan: Plan
    tested: PictureSet
    captions: tuple[str, ...]
    n_tokens: int
    records: Records
    progress: bool = False

    @classmethod
    def of(
        cls,
        vision: VisionSender,
        receiver: Model,
        part: Part,
        plan: Plan,
        folder: Path | None = None,
        *,
        progress: bool = False,
    ) -> "Setup":
        """The setup of a part, its results saved in a folder, if one is given."""
        testing = part.testing
        captions = tuple(dict.fromkeys([*(picture.caption for picture in part.fitting), *part.captions]))
        how = (plan.block, plan.write_layer, plan.template, plan.seed, part.pooling, part.grid, list(part.captions))
        return cls(
            vision,
            receiver,
            part,
            plan,
            tested=PictureSet(testing.name, testing.pictures[: plan.n_test]),
            captions=captions,
            n_tokens=caption_length(receiver, captions),
            records=Records.of(
                folder, "maps", 1, vision, receiver, part.fitting, list(part.questions), *how, *FITTING_RULES
            ),
            progress=progress,
        )


@dataclass(frozen=True, eq=False)
class Reading:
    """What an encoder sends after the block that is read.

    Attributes:
        eye: the encoder, the site, and the test pictures that it sends.
        vectors: of the fitting pictures.
    """

    eye: Eye
    vectors: Float[Tensor, "item d_read"]


@dataclass(frozen=True, eq=False)
class ChosenLayers:
    """Where states are read and written; None for what no channel of the plan needs.

    Attributes:
        reading: of the encoder.
        untrained: of an encoder of the same form with random weights, at a block of its own.
        write: where a graft writes.
    """

    reading: Reading | None
    untrained: Reading | None
    write: Site | None

    @property
    def chosen(self) -> dict[str, int]:
        """The block that is read, the layer that a graft writes into, and the block of the untrained encoder."""
        found = {
            "block": None if self.reading is None else self.reading.eye.site.block,
            "write_layer": None if self.write is None else self.write.layer,
            "random_encoder_block": None if self.untrained is None else self.untrained.eye.site.block,
        }
        return {name: layer for name, layer in found.items() if layer is not None}


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier of the vectors that the channels send, fitted to what training through the receiver sees.

    Attributes:
        tested: the vectors of the test pictures, read once for all questions.
    """

    setup: Setup
    vectors: Float[Tensor, "item d_read"]
    tested: Float[Tensor, "tested d_read"]

    def trials(self, question: Question, task: Task) -> list[Trial]:
        """Its answers to a task of the test pictures; see `probe.fit_answer_probe`."""
        setup, plan = self.setup, self.setup.plan
        fitted = fit_answer_probe(self.vectors, setup.part.fitting, question, template=plan.template, seed=plan.seed)
        rows = self.tested[setup.tested.indices([item.sender for item in task.items])]
        return probe_trials(fitted, rows, task, draw_choices(task, setup.receiver.first_token, seed=plan.seed))


@dataclass(frozen=True, eq=False)
class FittedChannels:
    """The channels of a part, fitted on its fitting pictures.

    Attributes:
        channels: those that the plan names, in the order of `CHANNELS`.
        layers: where they read and write.
        probe: None where the plan does not name it.
    """

    channels: tuple[Channel, ...]
    layers: ChosenLayers
    probe: Probe | None


def fit_channels(setup: Setup) -> FittedChannels:
    """Choose block and layer, fit the maps that the plan's channels need, and make the channels."""
    wanted = ("silent", *setup.plan.channels)
    layers = choose_layers_of(setup)
    made: dict[str, Channel] = {"silent": Silent(), "skyline": Skyline()}
    probe = None
    if layers.reading is not None:
        reading = layers.reading
        maps = fit_soft_maps(setup, reading, layers.untrained)
        eyes = dict.fromkeys(maps, reading.eye)
        if layers.untrained is not None:
            eyes["random_encoder"] = layers.untrained.eye
        made |= {name: SoftPrompt(name, eyes[name], mapping, setup.n_tokens) for name, mapping in maps.items()}
        made |= {name: Caption(name, reading.eye, each) for name, each in captioners(setup, reading, maps).items()}
        if PROBE in wanted:
            tested = reading.eye.vision.read([picture.image for picture in setup.tested], reading.eye.site).float()
            probe = Probe(setup, reading.vectors, tested)
        if layers.write is not None:
            for name, source in ((GRAFT, reading), (GRAFT_BLANK, layers.untrained), (GRAFT_CONTROL, reading)):
                if name in wanted and source is not None:
                    maps_of = fit_graft_maps(setup, source.vectors, layers.write, name)
                    made[name] = VisionGraft(name, source.eye, layers.write, maps_of)
    return FittedChannels(tuple(made[name] for name in CHANNELS if name in wanted and name in made), layers, probe)


def choose_layers_of(setup: Setup) -> ChosenLayers:
    """Choose what the plan leaves open: the block of each encoder, and the layer that grafts write into."""
    wanted = set(setup.plan.channels)
    if not wanted - {"silent", "skyline"}:
        return ChosenLayers(None, None, None)
    reading = read_fitting_pictures(setup, setup.vision)
    write = choose_write(setup, reading) if wanted & {GRAFT, GRAFT_BLANK, GRAFT_CONTROL} else None
    if not wanted & {"random_encoder", GRAFT_BLANK}:
        return ChosenLayers(reading, None, write)
    blank = setup.vision.randomised(seed=setup.plan.seed)
    return ChosenLayers(
        reading, read_fitting_pictures(setup, blank, states="random_seen", block="random_encoder_block"), write
    )


def read_fitting_pictures(setup: Setup, vision: VisionSender, *, states: str = "seen", block: str = "block") -> Reading:
    """Read the fitting pictures after every block, and choose the block by held-out fit unless the plan names one.

    `states` and `block` name the records of both.
    """
    part, plan = setup.part, setup.plan
    if plan.block is not None:
        vision.check_block(plan.block)  # before the encoder runs on all pictures
    images = [picture.image for picture in part.fitting]

    def read() -> dict[str, Tensor]:
        return {"states": vision.pooled(images, pooling=part.pooling, grid=part.grid)}

    seen = setup.records.tensors(states, read)["states"]
    number = plan.block
    if number is None:
        choose = partial(choose_block, seen, setup.receiver, part, n_tokens=setup.n_tokens, seed=plan.seed)
        number = setup.records.values(block, choose)
    return Reading(Eye(vision, setup.tested, VisionSite(number, part.pooling, part.grid)), seen[number].float())


def choose_write(setup: Setup, reading: Reading) -> Site:
    """Choose the layer that a graft writes into by accuracy on held-out fitting pictures, unless the plan names one."""
    if setup.plan.write_layer is not None:
        return Site(setup.plan.write_layer)
    choose = partial(
        choose_write_layer, setup.vision, reading.vectors, setup.receiver, setup.part, reading.eye.site.block,
        template=setup.plan.template, seed=setup.plan.seed,
    )  # fmt: skip
    return Site(setup.records.values("write_layer", choose))


def fit_soft_maps(setup: Setup, reading: Reading, untrained: Reading | None) -> dict[str, AffineMap]:
    """Fit the maps to soft tokens that the plan's channels need, by the name of the channel each is of."""
    wanted, vectors = set(setup.plan.channels), reading.vectors
    maps = {}
    if wanted & {"soft_prompt", TRAINED, "caption_by_map", "caption_by_word"}:
        maps["soft_prompt"] = fit_soft_map(setup, vectors, "soft_prompt")
    if wanted & {"shuffled_names", TRAINED_CONTROL}:
        maps["shuffled_names"] = fit_soft_map(setup, vectors, "shuffled_names", shuffled=setup.plan.seed)
    if TRAINED in wanted:
        file = f"training-{setup.plan.train_steps}.safetensors"
        maps[TRAINED] = train_soft_map(setup, vectors, maps["soft_prompt"], file=file, name="soft prompt")
    if TRAINED_CONTROL in wanted:
        file = f"training-other-pictures-{setup.plan.train_steps}.safetensors"
        shuffled = of_other_pictures(vectors, seed=setup.plan.seed)
        start = maps["shuffled_names"]
        maps[TRAINED_CONTROL] = train_soft_map(setup, shuffled, start, file=file, name="soft prompt, other pictures")
    if untrained is not None and "random_encoder" in wanted:
        maps["random_encoder"] = fit_soft_map(setup, untrained.vectors, "random_encoder")
    return maps


def fit_soft_map(
    setup: Setup, vectors: Float[Tensor, "item d_read"], name: str, *, shuffled: int | None = None
) -> AffineMap:
    """Fit the ridge map from the fitting pictures' vectors to the embeddings of captions, saved under a name."""
    fit = partial(
        fit_soft_prompt, vectors, setup.part.fitting, setup.receiver,
        n_tokens=setup.n_tokens, shuffled=shuffled, seed=setup.plan.seed,
    )  # fmt: skip
    return setup.records.saved(name, fit, AffineMap.load)


def of_other_pictures(vectors: Float[Tensor, "item d_read"], *, seed: int) -> Float[Tensor, "item d_read"]:
    """The vectors in an order in which each picture has that of another.

    >>> of_other_pictures(torch.tensor([[1.0], [2.0], [3.0]]), seed=0).flatten().tolist()
    [3.0, 1.0, 2.0]
    """
    order = list(range(len(vectors)))
    random.Random(f"other pictures:{seed}").shuffle(order)
    return vectors.clone().index_copy(0, torch.tensor(order), vectors[torch.tensor([*order[1:], order[0]])])


def train_soft_map(
    setup: Setup, vectors: Float[Tensor, "item d_read"], start: AffineMap, *, file: str, name: str
) -> AffineMap:
    """Train a map through the receiver from `start`; `file` is the checkpoint, next to the saved maps."""
    part, plan = setup.part, setup.plan
    tasks = [picture_task(part.fitting, question, template=plan.template) for question in part.questions]
    rows = {picture.id: row for picture, row in zip(part.fitting, vectors, strict=True)}
    learner = SoftPromptLearner.of(setup.receiver, tasks, rows, start)
    steps = plan.train_steps
    train(
        learner,
        Schedule(steps=steps, batch_size=BATCH, learning_rate=RATE, warmup=steps // 20, seed=plan.seed),
        frozen=[setup.receiver],
        checkpoint=None if setup.records.folder is None else setup.records.folder / file,
        progress=setup.progress,
        name=name,
    )
    return learner.mapping


def captioners(setup: Setup, reading: Reading, maps: Mapping[str, AffineMap]) -> dict[str, Captioner]:
    """Make the rules for captions that the plan's channels need, by channel."""
    wanted = set(setup.plan.channels)
    found: dict[str, Captioner] = {}
    if "caption" in wanted:
        found["caption"] = NearestPicture(reading.vectors, tuple(picture.caption for picture in setup.part.fitting))
    if "caption_by_map" in wanted:
        known = caption_embeddings(setup.receiver, setup.captions, n_tokens=setup.n_tokens)
        found["caption_by_map"] = NearestLabel(maps["soft_prompt"], known, setup.captions)
    if "caption_by_word" in wanted:
        rows = caption_tokens(setup.receiver, setup.captions, n_tokens=setup.n_tokens)
        candidates = tuple(tuple(dict.fromkeys(ids)) for ids in zip(*rows, strict=True))
        found["caption_by_word"] = NearestWords(maps["soft_prompt"], setup.receiver, candidates)
    return found


def fit_graft_maps(
    setup: Setup, vectors: Float[Tensor, "item d_read"], write: Site, name: str
) -> Mapping[str, AffineMap]:
    """Fit a graft's map of each question, saved under the channel's name; `GRAFT_CONTROL` to shuffled names."""
    part, plan = setup.part, setup.plan

    def fit() -> dict[str, Tensor]:
        maps = fit_vision_graft(
            vectors, part.fitting, part.questions, setup.receiver, [write],
            template=plan.template, shuffled=plan.seed if name == GRAFT_CONTROL else None, seed=plan.seed,
        )[write]  # fmt: skip
        return {f"{each}.{kind}": getattr(mapping, kind) for each, mapping in maps.items() for kind in MAP_TENSORS}

    found = setup.records.tensors(name, fit)
    names = [question.name for question in part.questions]
    return {each: AffineMap(*(found[f"{each}.{kind}"] for kind in MAP_TENSORS)) for each in names}
