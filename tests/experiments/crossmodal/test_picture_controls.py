"""Controls of pictures are what they say, and the table holds the right channels against each other."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics import assert_same_bits, equal_to_rounding, forward_terms, same_bits
from seeing import country_pictures, noise, sender
from test_crossmodal import WHERE, part
from tiny import COUNTRIES, build, model, states

from latentcomm._core.stats import mcnemar_exact, paired_bootstrap
from latentcomm.alignment import AffineMap
from latentcomm.experiments.crossmodal import choose_layers as choosing
from latentcomm.experiments.crossmodal import fitted_channels as fitted
from latentcomm.experiments.crossmodal import fitting
from latentcomm.experiments.crossmodal.channels import SoftPrompt, VisionGraft
from latentcomm.experiments.crossmodal.choose_layers import choose_block, choose_write_layer
from latentcomm.experiments.crossmodal.fitted_channels import Plan, Setup, choose_layers_of, fit_channels, fit_soft_map
from latentcomm.experiments.crossmodal.fitting import caption_embeddings, fit_soft_prompt, fit_vision_graft, renamed
from latentcomm.experiments.crossmodal.pictures import Picture, PictureSet
from latentcomm.experiments.crossmodal.questions import picture_task
from latentcomm.experiments.crossmodal.run import cross_modal
from latentcomm.experiments.crossmodal.splits import Part
from latentcomm.experiments.crossmodal.table import AGAINST, picture_table
from latentcomm.experiments.evaluation import Trial
from latentcomm.models.sites import Site


def reader() -> Any:
    return build("llama", dtype=torch.float32)


def test_permuted_names_group_the_pictures_of_a_name_and_none_is_its_own() -> None:
    pictures = country_pictures(24)
    found = renamed(pictures, seed=0)
    pairs = {(old.caption, new.caption) for old, new in zip(pictures, found, strict=True)}
    assert len(pairs) == 8 and all(old != new for old, new in pairs)
    assert {new for _, new in pairs} == set(COUNTRIES)
    assert [each.facts for each in found] == [each.facts for each in pictures]
    assert [each.caption for each in renamed(pictures, seed=1)] != [each.caption for each in found]
    with pytest.raises(ValueError, match="no name can be permuted"):
        renamed(PictureSet("same", tuple(replace(each, caption="x") for each in pictures)), seed=0)


@pytest.mark.parametrize("kind", ["soft prompt", "graft"])
def test_a_map_of_permuted_names_is_as_strong_and_answers_other_names(kind: str) -> None:
    receiver, pictures, site = model("llama"), country_pictures(48), Site(1)
    wrong_names = renamed(pictures, seed=3)
    target = caption_embeddings(receiver, [each.caption for each in pictures], n_tokens=1)
    wrong_target = caption_embeddings(receiver, [each.caption for each in wrong_names], n_tokens=1)
    seen = target @ states(receiver.d_model, 40, dtype=torch.float32) + 0.3 * states(48, 40, seed=1).float()
    if kind == "graft":
        task, wrong = (picture_task(each, WHERE) for each in (pictures, wrong_names))
        target = fitting.informed_states(receiver, task, [site])[site]
        wrong_target = fitting.informed_states(receiver, wrong, [site])[site]

    def fitted_map(shuffled: int | None) -> AffineMap:
        if kind == "soft prompt":
            return fit_soft_prompt(seen, pictures, receiver, n_tokens=1, shuffled=shuffled)
        return fit_vision_graft(seen, pictures, [WHERE], receiver, [site], shuffled=shuffled)[site]["identity"]

    true, false = fitted_map(None), fitted_map(3)
    assert true.r_squared(seen, target) > 0.7 and false.r_squared(seen, wrong_target) > 0.7
    assert false.r_squared(seen, target) < 0.2
    assert 0.7 < false(seen).std(0).norm() / true(seen).std(0).norm() < 1.4


def test_the_random_encoder_has_its_own_map_and_block() -> None:
    vision, given, plan = sender(), part(), Plan(channels=("soft_prompt", "random_encoder"))
    setup = Setup.of(vision, reader(), given, plan)
    found = fit_channels(setup)
    _, soft, blank = found.channels
    assert isinstance(soft, SoftPrompt) and isinstance(blank, SoftPrompt)
    images = [each.image for each in given.fitting]
    untrained = vision.randomised(seed=plan.seed)
    seen = untrained.pooled(images, pooling="class")
    block = choose_block(seen, setup.receiver, given, n_tokens=1)
    assert blank.eye.vision.fingerprint == untrained.fingerprint != soft.eye.vision.fingerprint
    assert blank.eye.site.block == block == found.layers.chosen["random_encoder_block"]
    own = fit_soft_prompt(seen[block].float(), given.fitting, setup.receiver, n_tokens=1)
    assert_same_bits(blank.mapping.weight, own.weight)
    assert not torch.allclose(blank.mapping.weight, soft.mapping.weight)
    fixed = fit_channels(Setup.of(vision, setup.receiver, given, replace(plan, block=2))).channels[2]
    assert isinstance(fixed, SoftPrompt) and fixed.eye.site.block == 2


def test_captions_and_soft_prompts_read_one_block() -> None:
    plan = Plan(channels=("soft_prompt", "graft", "caption", "caption_by_map", "caption_by_word"), write_layer=1)
    found: Any = fit_channels(Setup.of(sender(), reader(), part(), plan)).channels[1:]
    assert len({(each.eye.site, each.eye.vision.fingerprint) for each in found}) == 1
    images = [each.image for each in part().fitting]
    known = found[2].captioner.known
    assert_same_bits(known, found[0].eye.vision.read(images, found[0].eye.site).float())
    assert found[3].captioner.mapping is found[4].captioner.mapping is found[0].mapping


def planted_part(n: int = 64) -> tuple[Part, torch.Tensor]:
    """A part, and what three blocks see of its fitting pictures: noise, their names, and noise."""
    given = part(n)
    target = caption_embeddings(model("llama"), [each.caption for each in given.fitting], n_tokens=1)
    rows = len(given.fitting)
    informative = target / target.std() + 0.1 * states(rows, target.shape[1], dtype=torch.float32)
    others = [states(*informative.shape, seed=seed, dtype=torch.float32) for seed in (1, 2)]
    return given, torch.stack([others[0], informative, others[1]])


def test_the_block_that_tells_names_is_chosen() -> None:
    given, seen = planted_part()
    assert choose_block(seen, model("llama"), given, n_tokens=1) == 1
    assert choose_block(seen.roll(1, 0), model("llama"), given, n_tokens=1) == 2


@pytest.mark.parametrize("best", [0, 1])
def test_the_layer_at_which_most_is_right_is_chosen(best: int, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = model("llama")
    assert receiver.n_layers > 2
    monkeypatch.setattr(choosing, "LATE", (0.0, 1 / receiver.n_layers + 0.01))
    given, seen = planted_part()

    def right(channel: VisionGraft, *_: Any, **__: Any) -> float:
        return 0.9 if channel.write.layer == best else 0.2

    monkeypatch.setattr(choosing, "_accuracy", right)
    assert choose_write_layer(sender(), seen[1], receiver, given, 1) == best
    monkeypatch.setattr(choosing, "_accuracy", lambda *_, **__: 0.5)
    assert choose_write_layer(sender(), seen[1], receiver, given, 1) == 1  # equal ones: the later


def test_a_layer_is_judged_by_the_choices_that_the_evaluation_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = model("llama")
    drawn: list[tuple[Any, ...]] = []

    def draw(*given: Any, **options: Any) -> Any:
        drawn.append((given[0].name, options["seed"]))
        return [(item.choice,) for item in given[0].items]

    given, seen = planted_part()
    vision = sender()
    monkeypatch.setattr(choosing, "draw_choices", draw)
    channel = fit_channels(Setup.of(vision, receiver, given, Plan(channels=("soft_prompt",), block=1))).channels[1]
    task = picture_task(given.testing, WHERE)
    assert choosing._accuracy(channel, receiver, task, seed=5) == 1.0
    assert drawn == [(task.name, 5)]
    assert len(seen) == 3


def test_a_choice_without_pictures_to_choose_on_names_the_remedy() -> None:
    pictures = country_pictures(8)
    two = PictureSet("two", tuple(replace(each, group=f"g{int(each.id) % 2}") for each in pictures))
    small = Part("two", two, PictureSet("t", (Picture("t", noise(9), "Peru", {"identity": "Peru"}),)), (WHERE,))
    with pytest.raises(ValueError, match=r"has 2 groups of fitting pictures.*or both block and write_layer"):
        choose_block(states(3, 8, 16), model("llama"), small, n_tokens=1)


def answered(channel: str, right: str, condition: str = "message") -> list[Trial]:
    """Trials of pictures in order, right where the text has a 1."""
    return [
        Trial(f"p{place}", "x", channel, condition, "", each == "1", "", each == "1", 4)
        for place, each in enumerate(right)
    ]


BY_HAND = [
    *answered("silent", "00000000"), *answered("soft_prompt", "11111100"),
    *answered("soft_prompt", "10000000", "shuffled"),
    *answered("caption", "11110001"), *answered("caption_by_map", "00001111"), *answered("caption_by_word", "11111111"),
    *answered("probe", "00110011"),
    *answered("random_encoder", "01000000"), *answered("shuffled_names", "00000001"),
]  # fmt: skip
VERDICTS = {key: [mark == "1" for mark in marks] for key, marks in {
    "silent": "00000000", "caption": "11110001", "caption_by_map": "00001111", "caption_by_word": "11111111",
    "probe": "00110011",
    "random_encoder": "01000000", "wrong_names": "00000001", "shuffled": "10000000",
}.items()}  # fmt: skip


@pytest.mark.parametrize("base", AGAINST)
def test_a_row_is_held_against_each_other_channel_on_the_same_pictures(base: str) -> None:
    found = picture_table({("digits", "identity", "identity"): BY_HAND})
    rows = found[(found["metric"] == "choices") & (found["condition"] == "message")].set_index("channel")
    own = [mark == "1" for mark in "11111100"]
    expected = (6 - sum(VERDICTS[base])) / 8  # better than the base is above 0
    row = rows.loc["soft_prompt"]
    assert row[f"over_{base}"] == pytest.approx(expected)
    assert row[f"p_{base}"] == mcnemar_exact(own, VERDICTS[base]).p_value
    gain = paired_bootstrap(own, VERDICTS[base])
    assert (row[f"over_{base}_low"], row[f"over_{base}_high"]) == (gain.low, gain.high)
    if base in rows.index:
        assert math.isnan(rows.loc[base, f"over_{base}"])  # nothing is held against itself
        assert rows.loc[base, "over_silent"] > 0 or base == "silent"
    assert row["units"] == 8


def test_a_channel_is_held_against_its_own_controls_and_no_others() -> None:
    others = [*BY_HAND, *answered("graft", "11110000"), *answered("soft_prompt_trained", "11111111")]
    marks = {"graft_random_encoder": "10100000", "graft_shuffled_names": "00110011", "trained_other_pictures": "1" * 8}
    for name, right in marks.items():
        others += answered(name, right)
    found = picture_table({("digits", "identity", "identity"): others})
    rows = found[(found["metric"] == "choices") & (found["condition"] == "message")].set_index("channel")
    over = rows[["over_random_encoder", "over_wrong_names"]]
    assert over.loc["graft"].tolist() == [2 / 8, 0.0]
    assert over.loc["soft_prompt_trained", "over_wrong_names"] == 0.0
    assert over.loc[["caption", "silent", *marks]].isna().all(axis=None)
    assert math.isnan(over.loc["soft_prompt_trained", "over_random_encoder"])


def test_pictures_of_one_group_are_drawn_together() -> None:
    groups = {f"p{place}": "ab"[place // 4] for place in range(8)}
    trials = {("digits", "identity", "identity"): BY_HAND}
    found = picture_table(trials, groups=groups)
    row = found[(found["channel"] == "soft_prompt") & (found["metric"] == "choices")].iloc[0]
    own = [mark == "1" for mark in "11111100"]
    gain = paired_bootstrap(own, VERDICTS["silent"], groups=list("aaaabbbb"))
    assert (row["over_silent_low"], row["over_silent_high"], row["units"]) == (gain.low, gain.high, 2)
    assert (gain.low, gain.high) != (paired_bootstrap(own, VERDICTS["silent"]).low, 1.0)
    one = picture_table(trials, groups=dict.fromkeys(groups, "a")).iloc[2]
    assert one["over_silent"] == row["over_silent"] and math.isnan(one["over_silent_low"])
    with pytest.raises(ValueError, match="'p7' is in no group"):
        picture_table(trials, groups={f"p{place}": "a" for place in range(7)})


def test_the_job_gives_the_groups_of_its_pictures() -> None:
    fitting, testing = country_pictures(48).split(seed=0, fraction=0.6)
    drawn = PictureSet(testing.name, tuple(replace(each, group=f"t{n // 2}") for n, each in enumerate(testing)))
    given = Part("countries", fitting, drawn, (WHERE,))
    plan = Plan(channels=("caption",), reply_tokens=1, block=1)
    table = cross_modal(sender(), reader(), [given], plan=plan).table
    assert set(table["units"]) < set(range(2, 2 + len(drawn) // 2)) and table["n"].max() > table["units"].max()


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"template": "chat"}, {"train_steps": 3}], ids=lambda change: next(iter(change))
)
def test_two_plans_on_one_checkpoint_do_not_share_maps(change: Mapping[str, Any], tmp_path: Path) -> None:
    receiver, vision = reader(), sender()
    channels = ("graft", "soft_prompt_trained")
    plan = Plan(channels=channels, block=1, write_layer=1, train_steps=2)
    other = replace(plan, **change)

    def weights(which: Plan, folder: Path | None) -> list[torch.Tensor]:
        _, trained, graft = fit_channels(Setup.of(vision, receiver, part(24), which, folder)).channels
        assert isinstance(trained, SoftPrompt) and isinstance(graft, VisionGraft)
        return [trained.mapping.weight, graft.maps["identity"].weight]

    first, alone = weights(plan, tmp_path), weights(other, None)
    assert all(map(same_bits, weights(other, tmp_path), alone))
    assert all(map(same_bits, weights(plan, tmp_path), first))
    assert not equal_to_rounding(alone[0], first[0], terms=forward_terms(receiver))


def test_rules_of_fitting_are_in_the_key_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(channels=("caption",))
    fit_channels(Setup.of(sender(), reader(), part(24), plan, tmp_path))
    fit_channels(Setup.of(sender(), reader(), part(24), plan, tmp_path))
    assert len(list(tmp_path.iterdir())) == 1
    for number, rule in enumerate(fitted.FITTING_RULES):
        rules = [*fitted.FITTING_RULES]
        rules[number] = (0.5,) if isinstance(rule, tuple) else rule / 2
        monkeypatch.setattr(fitted, "FITTING_RULES", tuple(rules))
        setup = Setup.of(sender(), reader(), part(24), plan, tmp_path)
        assert len({setup.records.folder, *tmp_path.iterdir()}) == 2


def test_training_on_other_pictures_never_pairs_a_picture_with_its_vector(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = part(24)
    setup = Setup.of(sender(), reader(), given, Plan(channels=("trained_other_pictures",), block=1, train_steps=1))
    seen: list[tuple[Any, AffineMap]] = []
    real = fitting.SoftPromptLearner.of.__func__

    def of(cls: Any, receiver: Any, tasks: Any, vectors: Any, start: AffineMap) -> Any:
        seen.append((vectors, start))
        return real(cls, receiver, tasks, vectors, start)

    monkeypatch.setattr(fitting.SoftPromptLearner, "of", classmethod(of))
    fit_channels(setup)
    ((vectors, start),) = seen
    reading = choose_layers_of(setup).reading
    assert reading is not None
    own = {each.id: row for each, row in zip(given.fitting, reading.vectors, strict=True)}
    assert not any(same_bits(vectors[name], own[name]) for name in own)
    as_rows = lambda rows: sorted(map(tuple, torch.stack(list(rows)).tolist()))  # noqa: E731
    assert as_rows(vectors.values()) == as_rows(own.values())
    assert not torch.allclose(start.weight, fit_soft_map(setup, reading.vectors, "soft_prompt").weight)
