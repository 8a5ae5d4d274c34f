"""Nothing is fitted or chosen on a test picture, nor chosen on one that was fitted on."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics import assert_same_bits, equal_to_rounding, forward_terms, same_bits
from seeing import country_pictures, sender
from test_crossmodal import WHERE, part
from tiny import COUNTRIES, build, states

from latentcomm.experiments.crossmodal import choose_layers as choosing
from latentcomm.experiments.crossmodal import drift, fitting
from latentcomm.experiments.crossmodal import small_vit as digits_encoder
from latentcomm.experiments.crossmodal.channels import VisionGraft
from latentcomm.experiments.crossmodal.diagnostics import NameStates, alignment_map
from latentcomm.experiments.crossmodal.digits import digit_halves
from latentcomm.experiments.crossmodal.fitted_channels import GRAFT_CONTROL, Plan, Setup, fit_channels
from latentcomm.experiments.crossmodal.fitting import fit_vision_graft, informed_states
from latentcomm.experiments.crossmodal.pictures import PictureSet
from latentcomm.experiments.crossmodal.questions import Question, picture_task
from latentcomm.experiments.crossmodal.run import cross_modal
from latentcomm.experiments.crossmodal.splits import Part
from latentcomm.models.sites import Site
from latentcomm.similarity import debiased_cka, shuffled_rows


def reader() -> Any:
    return build("llama", dtype=torch.float32)


class Spy:
    """Calls the function that it replaces and records the arguments."""

    def __init__(self, patch: pytest.MonkeyPatch, module: Any, name: str) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.results: list[Any] = []
        self.real = getattr(module, name)
        patch.setattr(module, name, self)

    def __call__(self, *given: Any, **options: Any) -> Any:
        self.calls.append((given, options))
        self.results.append(self.real(*given, **options))
        return self.results[-1]


def rows_of(vectors: torch.Tensor) -> set[tuple[float, ...]]:
    return set(map(tuple, vectors.tolist()))


def test_a_block_is_scored_on_pictures_that_its_map_was_not_fitted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = part()
    pairs = tuple(replace(each, group=f"g{place // 2}") for place, each in enumerate(whole.fitting))
    given = replace(whole, fitting=replace(whole.fitting, pictures=pairs))
    seen = sender().pooled([each.image for each in given.fitting], pooling="class")
    scored: list[torch.Tensor] = []
    real = choosing.fit_ridge

    class Scored:
        def __init__(self, found: Any) -> None:
            self.found = found

        def r_squared(self, rows: torch.Tensor, target: torch.Tensor) -> float:
            scored.append(rows)
            return self.found.r_squared(rows, target)

    fit = Spy(monkeypatch, choosing, "fit_ridge")
    monkeypatch.setattr(choosing, "fit_ridge", lambda *a, **b: Scored(fit(*a, **b)))
    choosing.choose_block(seen, reader(), given, n_tokens=1)
    assert len(scored) == len(seen) and real is fit.real
    by_row = dict(zip(map(tuple, seen[0].float().tolist()), given.fitting, strict=True))
    for block, ((rows, _), options) in enumerate(fit.calls):
        assert not rows_of(rows) & rows_of(scored[block])
        assert rows_of(rows) | rows_of(scored[block]) == rows_of(seen[block].float())
        assert options["groups"] == [by_row[tuple(row)].group for row in fit.calls[0][0][0].tolist()]


def test_a_write_layer_is_chosen_on_pictures_its_maps_were_not_fitted_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = part()
    vision = sender()
    vectors = vision.pooled([each.image for each in given.fitting], pooling="class")[1].float()
    fit, judged = Spy(monkeypatch, choosing, "fit_vision_graft"), Spy(monkeypatch, choosing, "picture_task")
    choosing.choose_write_layer(vision, vectors, reader(), given, 1)
    (((rows, inner, *_), _),) = fit.calls
    tested = {item.sender for task in judged.results for item in task.items}
    known = {each.id for each in inner}
    assert tested and known and not tested & known
    assert tested | known <= {each.id for each in given.fitting}
    own = dict(zip((each.id for each in given.fitting), vectors, strict=True))
    assert_same_bits(rows, torch.stack([own[each.id] for each in inner]))


def test_a_penalty_is_chosen_on_whole_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = country_pictures(24)
    grouped = PictureSet("g", tuple(replace(each, group=f"g{int(each.id) // 3}") for each in pictures))
    chosen = Spy(monkeypatch, fitting, "choose_penalty")
    fitting.fit_soft_prompt(states(24, 12).float(), grouped, reader(), n_tokens=1)
    assert [options["groups"] for _, options in chosen.calls] == [[each.group for each in grouped]]


def test_the_small_encoder_sees_no_scan_of_the_testing_half(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [Spy(monkeypatch, digits_encoder, name) for name in ("one_digit", "four_cells")]
    digits_encoder.small_vit(steps=1, n_pictures=80, seed=3)
    for spy in drawn:
        ((numbers,), _), (made,) = spy.calls[0], spy.results
        assert set(numbers) <= set(digit_halves(seed=3).fitting)
        scans = {name for each in made for name in (each.sources or (each.group,))}
        assert scans <= {f"scan {number}" for number in digit_halves(seed=3).fitting}


def test_a_graft_of_wrong_names_is_fitted_to_the_states_of_other_names() -> None:
    given, plan = part(), Plan(channels=("graft", GRAFT_CONTROL), block=1, write_layer=1)
    setup = Setup.of(sender(), reader(), given, plan)
    found = fit_channels(setup)
    _, own, control = found.channels
    assert isinstance(own, VisionGraft) and isinstance(control, VisionGraft) and found.layers.reading is not None
    arguments = (found.layers.reading.vectors, given.fitting, given.questions, setup.receiver, [Site(1)])
    wrong = fit_vision_graft(*arguments, shuffled=plan.seed, seed=plan.seed)[Site(1)]["identity"]
    assert_same_bits(control.maps["identity"].weight, wrong.weight)
    assert not torch.allclose(control.maps["identity"].weight, own.maps["identity"].weight)


def test_the_graft_of_an_untrained_encoder_has_its_weights_block_and_map() -> None:
    given, plan = part(), Plan(channels=("random_encoder", "graft_random_encoder"), write_layer=1)
    setup = Setup.of(sender(), reader(), given, plan)
    found: Any = fit_channels(setup)
    _, soft, graft = found.channels
    assert graft.eye is soft.eye and graft.write == Site(1)
    blank = setup.vision.randomised(seed=plan.seed)
    block = found.layers.chosen["random_encoder_block"]
    seen = blank.pooled([each.image for each in given.fitting], pooling="class")[block].float()
    own = fit_vision_graft(seen, given.fitting, given.questions, setup.receiver, [Site(1)])[Site(1)]["identity"]
    assert_same_bits(graft.maps["identity"].weight, own.weight)


@pytest.mark.parametrize(
    "change", [{"block": 2}, {"write_layer": 0}, {"captions": ("Peru Italy",)}], ids=lambda change: next(iter(change))
)
def test_places_and_captions_are_in_the_key_of_the_cache(change: dict[str, Any], tmp_path: Path) -> None:
    receiver, vision, given = reader(), sender(), part(24)
    plan = Plan(channels=("soft_prompt", "graft"), block=1, write_layer=1)
    other = replace(given, captions=change["captions"]) if "captions" in change else given
    changed = plan if "captions" in change else replace(plan, **change)

    def weights(of: Part, which: Plan, folder: Path | None) -> list[torch.Tensor]:
        found: Any = fit_channels(Setup.of(vision, receiver, of, which, folder)).channels
        return [found[1].mapping.weight, found[2].maps["identity"].weight]

    first, alone = weights(given, plan, tmp_path), weights(other, changed, None)
    assert all(map(same_bits, weights(other, changed, tmp_path), alone))
    assert any(not equal_to_rounding(a, b, terms=forward_terms(receiver)) for a, b in zip(first, alone, strict=True))


def test_drift_of_a_graft_is_that_of_test_pictures_among_fitting_states(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drift, "FEWEST_ROWS", 4)
    known: list[torch.Tensor] = []
    monkeypatch.setattr(drift, "fit_drift_reference", lambda own, **_: known.append(own))
    measured = Spy(monkeypatch, drift, "combined_drift")
    given = part()
    unknown = given.testing.pictures[0].caption  # a name that no fitting picture has
    fewer = tuple(each for each in given.fitting if each.caption != unknown)
    given = replace(given, fitting=replace(given.fitting, pictures=fewer))
    setup = Setup.of(sender(), reader(), given, Plan(channels=("graft",), block=1, write_layer=1))
    _, graft = fit_channels(setup).channels
    assert isinstance(graft, VisionGraft)
    drift.measure_drift(setup, [graft])
    own = informed_states(setup.receiver, picture_task(given.fitting, WHERE), [Site(1)])[Site(1)]
    assert [rows_of(each) for each in known] == [rows_of(own)]
    images = [each.image for each in given.testing]
    mapped = graft.maps["identity"](graft.eye.vision.read(images, graft.eye.site))
    assert_same_bits(measured.calls[-1][0][0], mapped)


def test_the_null_of_the_chosen_cell_is_that_of_the_held_out_names() -> None:
    seen, read = states(1, 60, 8), states(1, 60, 6, seed=1)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))  # as `alignment_map` halves them
    read[0, order[:30], 0] = 5 * seen[0, order[:30], 0]  # alike on the choosing half alone, whose null is wider
    found = alignment_map(NameStates(tuple(map(str, range(60))), seen, read), k=5, draws=40)
    x, y = (each[0, order[30:]] for each in (seen, read))
    drawn = torch.tensor([debiased_cka(x, y[each.partners]) for each in shuffled_rows(30, draws=40, seed=0)])
    row = found[found["measure"] == "debiased_cka"].iloc[0]
    assert (row["null_mean"], row["null_95"]) == pytest.approx((float(drawn.mean()), float(drawn.quantile(0.95))))


def names(pictures: PictureSet, words: Sequence[str]) -> PictureSet:
    """The pictures, called after these in turn."""
    called = [words[place % len(words)] for place in range(len(pictures))]
    return replace(
        pictures,
        pictures=tuple(
            replace(each, caption=name, facts={"identity": name}) for each, name in zip(pictures, called, strict=True)
        ),
    )


def test_names_that_begin_alike_stop_no_choice_of_a_layer_and_no_question() -> None:
    words = [name for country in COUNTRIES[:4] for name in (country, f"{country} Peru")]
    fitting_, testing = names(country_pictures(64), words).split(seed=0, fraction=0.5)
    where = Question("identity", "Alice is in the country of", "identity")
    given = Part("alike", fitting_, testing, (where,))
    plan = Plan(channels=("soft_prompt", "graft"), reply_tokens=1)
    table = cross_modal(sender(), reader(), [given], plan=plan).table
    assert set(table[table["metric"] == "choices"]["chance"]) == {1 / 4}
