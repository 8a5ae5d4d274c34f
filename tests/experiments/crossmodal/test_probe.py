"""A linear classifier of the latents: it finds what is there, sees no tested picture, and needs no reader."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from numerics import same_bits
from seeing import country_pictures, noise, sender
from sklearn.linear_model import LogisticRegression
from test_crossmodal import WHERE, part
from tiny import COUNTRIES, build, states

from latentcomm.experiments.crossmodal import fitted_channels as fitted
from latentcomm.experiments.crossmodal import probe
from latentcomm.experiments.crossmodal.fitted_channels import Plan, Setup, choose_layers_of
from latentcomm.experiments.crossmodal.pictures import Picture, PictureSet
from latentcomm.experiments.crossmodal.probe import AnswerProbe, fit_answer_probe, probe_trials
from latentcomm.experiments.crossmodal.questions import Question, picture_task
from latentcomm.experiments.crossmodal.run import cross_modal
from latentcomm.experiments.evaluation import Trial

KIND = Question("category", "It is of", "category")
PLACES = ("top", "bottom")


def draws(n: int, d: int, seed: int) -> torch.Tensor:
    return states(n, d, seed=seed, dtype=torch.float32)


def probe_answers(found: AnswerProbe, vectors: torch.Tensor, pictures: PictureSet, question: Question) -> list[Trial]:
    task = picture_task(pictures, question)
    return probe_trials(found, vectors, task, [item.candidates or task.candidates for item in task.items])


def share(trials: list[Trial]) -> float:
    return sum(bool(trial.choices) for trial in trials) / len(trials)


def test_a_linear_code_is_found_in_new_pictures_and_noise_is_at_chance() -> None:
    pictures, hidden = country_pictures(96), draws(8, 16, 1)
    informative = torch.eye(8)[torch.arange(96) % 8] @ hidden
    found = fit_answer_probe(informative + 0.2 * draws(96, 16, 2), pictures, WHERE)
    assert share(probe_answers(found, informative + 0.2 * draws(96, 16, 3), pictures, WHERE)) > 0.95
    empty = fit_answer_probe(draws(96, 16, 4), pictures, WHERE)
    assert share(probe_answers(empty, draws(96, 16, 5), pictures, WHERE)) < 0.3
    assert (
        share(probe_answers(found, informative.roll(1, 0), pictures, WHERE)) < 0.05
    )  # and of another picture it is that one's


def test_answers_in_a_row_are_told_apart_in_its_middle() -> None:
    counts = ("one", "two", "three", "four")
    pictures = PictureSet("many", tuple(Picture(str(n), noise(n), "x", {"count": counts[n % 4]}) for n in range(120)))
    question = Question("count", "How many? There are", "count")
    along = (torch.arange(120) % 4).float()[:, None] * draws(1, 6, 1)
    found = fit_answer_probe(along + 0.1 * draws(120, 6, 2), pictures, question)
    trials = probe_answers(found, along + 0.1 * draws(120, 6, 3), pictures, question)
    by_count = {count: [bool(each.choices) for each in trials if each.label == count] for count in counts}
    assert all(sum(right) / len(right) > 0.8 for right in by_count.values())  # least squares hardly says two or three
    assert all(each.free == each.choices for each in trials)


def test_a_question_whose_text_names_a_place_has_a_classifier_for_each() -> None:
    """Both places are seen; only the text of the question says which one is needed."""
    facts = [{"where": PLACES[n % 2], "there": COUNTRIES[n // 2 % 8], "n": str(n)} for n in range(160)]
    pictures = PictureSet("places", tuple(Picture(str(n), noise(n), "x", each) for n, each in enumerate(facts)))
    question = Question("position", "At the {where} is", "there", COUNTRIES)
    other = torch.randint(0, 8, (160,), generator=torch.Generator().manual_seed(3))
    shown = torch.zeros(160, 2, 8)
    for n, each in enumerate(facts):
        shown[n, n % 2, COUNTRIES.index(each["there"])] = 1
        shown[n, 1 - n % 2, other[n]] = 1
    seen = shown.flatten(1)
    found = fit_answer_probe(seen, pictures, question)
    assert set(found.by_text) == {"At the top is", "At the bottom is"}
    assert share(probe_answers(found, seen, pictures, question)) > 0.95
    blurred = share(probe_answers(replace(found, by_text={}), seen, pictures, question))
    assert 0.2 < blurred < 0.9
    single = Question("position", "At {n} is", "there", COUNTRIES)  # a text a picture: nothing to fit one to
    assert fit_answer_probe(seen, pictures, single).by_text == {}


def test_a_single_answer_is_always_given_and_an_unseen_one_never_first() -> None:
    pictures = country_pictures(24)
    same = PictureSet("same", tuple(replace(each, facts={"category": "Peru"}) for each in pictures))
    fixed = replace(KIND, answers=("Peru", "Italy"))
    found = fit_answer_probe(draws(24, 16, 1), same, fixed)
    assert {trial.reply for trial in probe_answers(found, draws(24, 16, 2), same, fixed)} == {" Peru"}
    few = PictureSet("few", pictures.pictures[:2])  # Greece and Italy
    known = fit_answer_probe(draws(2, 16, 1), few, WHERE)
    task = picture_task(pictures, WHERE)
    options = [(" Peru", " Chile", " Italy"), (" Peru", " Chile")]
    trials = probe_trials(known, draws(24, 16, 2), task, [options[n % 2] for n in range(24)])
    assert {trial.pick for trial in trials[::2]} == {" Italy"} and {trial.pick for trial in trials[1::2]} == {" Peru"}
    assert {trial.n_choices for trial in trials} == {3, 2}
    assert {trial.reply for trial in trials} <= {" Greece", " Italy"}
    with pytest.raises(ValueError, match="one a picture"):
        fit_answer_probe(draws(3, 16, 1), pictures, WHERE)


def test_the_strength_is_chosen_on_whole_groups_where_names_have_several() -> None:
    groups = [f"g{place // 3}" for place in range(24)]
    kinds = [("even", "odd")[place // 3 % 2] for place in range(24)]
    for fold in probe._folds(kinds, groups, 0):
        held = {groups[row] for row in fold}
        assert not held & {groups[row] for row in range(24) if row not in fold}
    names = probe._folds(groups, groups, 0)
    assert sorted(row for fold in names for row in fold) == list(range(24))
    assert any({groups[row] for row in fold} & {groups[r] for r in range(24) if r not in fold} for fold in names)
    assert probe._folds(["a"] * 6, groups[:6], 0) == []


def test_it_is_logistic_regression_on_standardised_vectors() -> None:
    pictures = country_pictures(48)
    seen = torch.eye(8)[torch.arange(48) % 8] @ draws(8, 16, 1) + 2 * draws(48, 16, 2)
    found = fit_answer_probe(seen, pictures, WHERE)
    x = seen.double().numpy()
    z = (x - x.mean(0)) / x.std(0)
    right = [f" {each.facts['identity']}" for each in pictures]
    strength = found.of_all.fitted[-1].C
    assert strength in probe.STRENGTHS
    alone = LogisticRegression(C=strength, max_iter=5000, tol=1e-8).fit(z, right)
    expected = torch.tensor(alone.predict_log_proba(z))
    given = torch.tensor([list(found.scores(WHERE.ask, row).values()) for row in seen])
    assert found.of_all.answers == tuple(alone.classes_)
    torch.testing.assert_close(given.double().exp(), expected.exp(), atol=1e-2, rtol=0)


def test_the_strength_is_the_strongest_of_the_best_on_held_out_pictures() -> None:
    pictures = country_pictures(48)
    seen = torch.eye(8)[torch.arange(48) % 8] @ draws(8, 30, 1) + 3 * draws(48, 30, 2)
    x = seen.double().numpy()
    names = [f" {each.facts['identity']}" for each in pictures]
    groups = [each.group for each in pictures]
    right = dict.fromkeys(probe.STRENGTHS, 0)
    for fold in probe._folds(names, groups, 0):
        training = [row for row in range(48) if row not in fold]
        z = (x - x[training].mean(0)) / x[training].std(0)
        for strength in right:
            alone = LogisticRegression(C=strength, max_iter=2000).fit(z[training], [names[row] for row in training])
            right[strength] += sum(
                answer == names[row] for answer, row in zip(alone.predict(z[fold]), fold, strict=True)
            )
    best = next(strength for strength in probe.STRENGTHS if right[strength] == max(right.values()))
    assert len(set(right.values())) > 1 and best != probe.STRENGTHS[-1]
    chosen = fit_answer_probe(seen, pictures, WHERE).of_all.fitted[-1]
    assert best == chosen.C


def test_it_sees_the_training_vectors_and_the_receivers_questions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given, plan = part(), Plan(channels=("soft_prompt", "probe"), reply_tokens=1)
    calls: list[Any] = []
    real = fit_answer_probe

    def spy(*arguments: Any, **options: Any) -> AnswerProbe:
        calls.append((arguments, options))
        return real(*arguments, **options)

    monkeypatch.setattr(fitted, "fit_answer_probe", spy)
    vision, reader = sender(), build("llama", dtype=torch.float32)
    found = cross_modal(vision, reader, [given], plan=plan)
    (((vectors, pictures, question), options),) = calls
    reading = choose_layers_of(Setup.of(vision, reader, given, plan)).reading
    assert (
        reading is not None and same_bits(vectors, reading.vectors) and pictures is given.fitting and question == WHERE
    )
    assert options == {"template": plan.template, "seed": plan.seed}
    trials = found.trials["countries", "identity", "identity"]
    own = {trial.item: trial for trial in trials if trial.channel == "probe"}
    others = {trial.item: trial for trial in trials if trial.channel == "soft_prompt" and trial.condition == "message"}
    assert own.keys() == others.keys() and all(own[key].n_choices == others[key].n_choices for key in own)
    task = picture_task(given.testing, WHERE)
    seen = vision.read([given.testing[item.sender].image for item in task.items], reading.eye.site).float()
    again = probe_answers(real(vectors, pictures, question), seen, given.testing, WHERE)
    assert {trial.item: trial.reply for trial in again} == {key: trial.reply for key, trial in own.items()}
    row = found.table.query("channel == 'probe' and metric == 'choices'").iloc[0]
    assert row["correct"] == sum(bool(trial.choices) for trial in own.values()) and 0 <= row["p_silent"] <= 1
