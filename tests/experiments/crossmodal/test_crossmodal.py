import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seeing import country_pictures, noise, sender
from tiny import COUNTRIES, build, model, states

from latentcomm.alignment import AffineMap
from latentcomm.channels import Channel
from latentcomm.drift import fit_drift_reference, fitting
from latentcomm.experiments.crossmodal import digits, drift
from latentcomm.experiments.crossmodal import small_vit as digits_encoder
from latentcomm.experiments.crossmodal.channels import SoftPrompt
from latentcomm.experiments.crossmodal.diagnostics import (
    NameStates,
    alignment_map,
    combined_drift,
    mapped_drift,
    name_states,
)
from latentcomm.experiments.crossmodal.digits import (
    CELLS,
    FOUR_CELLS,
    INKS,
    ONE_DIGIT,
    WORDS,
    digit_halves,
    four_cells,
    one_digit,
)
from latentcomm.experiments.crossmodal.fitted_channels import FITTED_CONTROLS, Setup, fit_channels
from latentcomm.experiments.crossmodal.pictures import Picture, PictureSet
from latentcomm.experiments.crossmodal.questions import Question, picture_task
from latentcomm.experiments.crossmodal.run import CHANNELS, USUAL, Part, Plan, cross_modal, digit_parts, exchangeable
from latentcomm.experiments.crossmodal.small_vit import small_vit
from latentcomm.models import encode, recorded_passes
from latentcomm.models.vision import VisionSite

WHERE = Question("identity", "Alice is in the country of", "identity", COUNTRIES)


def part(n: int = 48) -> Part:
    fitting, testing = country_pictures(n).split(seed=0, fraction=0.6)
    return Part("countries", fitting, testing, (WHERE,))


def test_no_scan_is_on_both_sides_and_every_digit_on_each() -> None:
    halves = digit_halves()
    assert not set(halves.fitting) & set(halves.testing)
    assert sorted((*halves.fitting, *halves.testing)) == list(range(1797))
    assert digit_halves(seed=1) != halves
    one, _ = digit_parts(n_fitting=30, n_testing=20)
    assert not {each.group for each in one.fitting} & {each.group for each in one.testing}
    assert {each.group for each in one.fitting} <= {f"scan {number}" for number in halves.fitting}
    assert {each.group for each in one.testing} <= {f"scan {number}" for number in halves.testing}


def test_a_picture_shows_what_its_facts_say() -> None:
    halves = digit_halves()
    for picture in one_digit(halves.fitting, n=20):
        pixels = np.asarray(picture.image).astype(float)
        ink = INKS[picture.facts["colour"]]
        brightest = pixels.reshape(-1, 3)[pixels.sum(2).argmax()]
        assert np.allclose(brightest / brightest.max(), np.array(ink) / max(ink), atol=0.02)
        assert picture.caption == f"a {picture.facts['colour']} {picture.facts['identity']}"
        assert picture.facts["category"] == ("even", "odd")[WORDS.index(picture.facts["identity"]) % 2]
    for picture in four_cells(halves.fitting, n=20):
        pixels = np.asarray(picture.image)
        lit = [bool(pixels[8 * (c // 2) :][:8, 8 * (c % 2) :][:, :8].any()) for c in range(4)]
        assert WORDS[sum(lit)] == picture.facts["count"]
        word_of = dict(each.rsplit(" ", 1) for each in picture.caption.split(", ")[1:])
        assert [word_of[cell] != "nothing" for cell in CELLS] == lit
        assert word_of[picture.facts["cell"]] == picture.facts["there"] != "nothing"
    assert one_digit(halves.fitting, n=5).fingerprint == one_digit(halves.fitting, n=5).fingerprint
    assert one_digit(halves.fitting, n=5).fingerprint != one_digit(halves.fitting, n=5, seed=1).fingerprint
    with pytest.raises(ValueError, match="cannot be drawn"):
        digits.one_digit((), n=3)


def test_every_digit_question_makes_a_task() -> None:
    one, four = digit_parts(n_fitting=30, n_testing=20)
    for given, questions in ((one, ONE_DIGIT), (four, FOUR_CELLS)):
        for question in questions:
            task = picture_task(given.testing, question)
            assert len(task.items) == 20
            assert {item.tags["type"] for item in task.items} == {question.type}
    assert "{" not in picture_task(four.testing, FOUR_CELLS[1]).items[0].receiver


def test_the_small_encoder_learns_and_a_stopped_training_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = small_vit(steps=4, n_pictures=40, path=tmp_path / "vit.safetensors")
    again = small_vit(steps=4, n_pictures=40)
    read = small_vit(steps=4, n_pictures=40, path=tmp_path / "vit.safetensors")
    assert found.fingerprint == again.fingerprint == read.fingerprint
    assert small_vit(steps=5, n_pictures=40).fingerprint != found.fingerprint
    assert found.read([noise(0, 16, 16)], VisionSite(3, "class")).shape == (1, 64)
    with pytest.raises(ValueError, match="give another path"):
        small_vit(steps=5, n_pictures=40, path=tmp_path / "vit.safetensors")
    (tmp_path / "vit.safetensors").write_bytes((tmp_path / "vit.safetensors").read_bytes()[:-8])
    assert small_vit(steps=4, n_pictures=40, path=tmp_path / "vit.safetensors").fingerprint == found.fingerprint
    assert (tmp_path / "vit.safetensors.damaged").exists()
    for name, value in (
        ("BATCH", 8),
        ("RATE", 1e-2),
        ("one_digit", lambda numbers, **how: one_digit(numbers[1:], **how)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(digits_encoder, name, value)
            with pytest.raises(ValueError, match="give another path"):
                small_vit(steps=4, n_pictures=40, path=tmp_path / "vit.safetensors")


def test_a_group_on_both_sides_is_refused() -> None:
    pictures = country_pictures(8)
    with pytest.raises(ValueError, match="in the fitting and in the testing set"):
        Part("countries", pictures, pictures, (WHERE,))


def test_the_whole_job_on_tiny_models_reports_every_channel_and_resumes(tmp_path: Path) -> None:
    vision, receiver = sender(), build("llama", dtype=torch.float32)
    plan = Plan(channels=CHANNELS, reply_tokens=1, train_steps=4)
    found = cross_modal(vision, receiver, [part()], plan=plan, checkpoint=tmp_path)
    table = found.table[found.table["metric"] == "choices"]
    assert list(dict.fromkeys(table["channel"])) == list(CHANNELS)
    controlled = set(table[table["condition"] == "shuffled"]["channel"])
    assert controlled == set(CHANNELS) - {"silent", "skyline", "probe", *FITTED_CONTROLS}
    zeroed = set(table[table["condition"] == "zero"]["channel"])
    assert zeroed == set(table[table["condition"] == "random"]["channel"])
    assert zeroed == {"soft_prompt", "soft_prompt_trained", "graft"}
    assert set(table["chance"]) == {1 / 8}
    rows = table[table["condition"] == "message"].set_index("channel")
    assert set(rows["type"]) == {"identity"} and len(set(rows["n"])) == 1
    right = [trial.choices for trial in found.trials["countries", "identity", "identity"] if trial.channel == "skyline"]
    assert rows.loc["skyline", "correct"] == sum(map(bool, right))
    assert rows.loc["skyline", "p_shuffled"] != rows.loc["skyline", "p_shuffled"]  # it has no message to shuffle
    for name in ("silent", "caption", "caption_by_map", "caption_by_word", "probe", "random_encoder", "wrong_names"):
        assert 0 <= rows.loc["soft_prompt", f"p_{name}"] <= 1
    assert set(found.chosen["countries"]) == {"block", "write_layer", "random_encoder_block"}
    with recorded_passes() as passes:
        again = cross_modal(vision, receiver, [part()], plan=plan, checkpoint=tmp_path)
    assert [each for each in passes if each.n_new] == []
    assert again.table.equals(found.table)
    assert len(found.trial_table()) == sum(map(len, found.trials.values()))
    with pytest.raises(ValueError, match="each with its own name"):
        cross_modal(vision, receiver, [])
    with pytest.raises(ValueError, match="block 9 is outside"):
        cross_modal(vision, receiver, [part()], plan=Plan(channels=("caption",), block=9))


def test_few_channels_fit_what_they_need_and_silence_is_there(tmp_path: Path) -> None:
    plan = Plan(channels=("caption",), reply_tokens=1, n_test=8)
    found = cross_modal(sender(), build("llama", dtype=torch.float32), [part()], plan=plan, checkpoint=tmp_path)
    assert list(dict.fromkeys(found.table["channel"])) == ["silent", "caption"]
    assert set(found.chosen["countries"]) == {"block"}
    assert {path.name for path in tmp_path.glob("maps-*/*")} == {"block.json", "seen.safetensors"}
    assert found.table["n"].max() <= 8
    nothing = cross_modal(sender(), build("llama", dtype=torch.float32), [part()], plan=Plan(channels=("silent",)))
    assert nothing.chosen == {"countries": {}}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"channels": ("smoke",)}, "no channel for pictures 'smoke'"),
        ({"channels": ("blind",)}, "'blind' is called 'silent'"),
        ({"channels": ("graft", "graft")}, "named twice"),
        ({"n_test": 0}, "at least 1"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Plan(**options)
    assert set(USUAL) == set(CHANNELS) - {"soft_prompt_trained", "trained_other_pictures"}


def test_items_of_the_commonest_answer_leave_until_all_can_be_exchanged() -> None:
    pictures = PictureSet(
        "lopsided",
        tuple(Picture(str(n), noise(n), "x", {"identity": COUNTRIES[0 if n < 7 else n - 6]}) for n in range(10)),
    )
    task = exchangeable(picture_task(pictures, WHERE))
    assert [item.sender for item in task.items] == ["0", "1", "2", "7", "8", "9"]
    assert exchangeable(task) == task
    with pytest.raises(ValueError, match=r"all 3 test pictures of .* have the answer 'Greece'"):
        exchangeable(replace(task, items=task.items[:3]))


def test_a_shared_space_shows_on_held_out_names_unlike_unrelated_states() -> None:
    latent = states(60, 6)
    seen = torch.stack([states(60, 12, seed=1), latent @ states(6, 12, seed=2)])
    read = torch.stack([latent @ states(6, 9, seed=3), states(60, 9, seed=4), states(60, 9, seed=6)])
    names = tuple(map(str, range(60)))
    found = alignment_map(NameStates(names, seen, read), k=5)
    chosen = found[found["chosen"]].set_index("measure")
    assert set(zip(chosen["block"], chosen["layer"], strict=True)) == {(1, 0)}
    assert (chosen["p"] < 0.05).all() and (chosen["held_out"] > chosen["null_95"]).all()
    unrelated = alignment_map(NameStates(names, seen[:1], read[1:]), k=5)
    assert (unrelated[unrelated["chosen"]]["p"] > 0.05).all()
    assert unrelated[unrelated["chosen"]]["choosing"].max() > 0
    with pytest.raises(ValueError, match="10 neighbours need more"):
        alignment_map(NameStates(names[:20], seen[:, :20], read[:, :20]))


def test_the_cell_is_chosen_on_one_half_of_the_names() -> None:
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))  # as `alignment_map` halves them
    latent = states(60, 6)
    seen = (latent @ states(6, 12, seed=2))[None]
    read = torch.stack([states(60, 9, seed=4), states(60, 9, seed=6)])
    shared = latent @ states(6, 9, seed=3)
    read[0, order[:30]], read[1, order[30:]] = shared[order[:30]], shared[order[30:]]
    found = alignment_map(NameStates(tuple(map(str, range(60))), seen, read), k=5)
    chosen = found[found["chosen"]]
    assert set(chosen["layer"]) == {0}
    other = found[found["layer"] == 1].set_index("measure")["held_out"]
    assert (chosen.set_index("measure")["held_out"] < other).all() and (chosen["p"] > 0.05).all()


def test_a_names_states_are_means_over_its_pictures_and_its_last_token() -> None:
    receiver, vision, pictures = model("llama"), sender(), country_pictures(16)
    found = name_states(vision, receiver, pictures)
    assert found.names == COUNTRIES
    both = vision.read([pictures["2"].image, pictures["10"].image], VisionSite(1, "class")).double()
    assert torch.allclose(found.seen[1, 2], both.mean(0), atol=1e-5)
    assert encode(receiver, ["Picture: Peru"]).lengths.tolist() == [2]
    assert found.read.shape == (receiver.n_layers, 8, receiver.d_model)


def test_drift_tells_own_states_from_states_far_off() -> None:
    own = states(400, 8)
    near, far = mapped_drift(states(60, 8, seed=1), own), mapped_drift(8 * states(60, 8, seed=1), own)
    by = lambda table: table.set_index("measure")["above_95"]  # noqa: E731
    assert by(near)["norm_ratio"] < 0.2 < 0.9 < by(far)["norm_ratio"]
    assert combined_drift(states(60, 8, seed=1), fit_drift_reference(own))["drift_above_95"] < 0.2
    assert combined_drift(8 * states(60, 8, seed=1), fit_drift_reference(own))["drift"] > 0.95


def test_drift_of_a_channel_is_that_of_its_maps_output_for_test_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "FEWEST_ROWS", 60)  # the tiny reader knows 64 tokens
    monkeypatch.setattr(drift, "FEWEST_ROWS", 60)
    receiver, given = build("llama", dtype=torch.float32), part()
    plan = Plan(channels=("soft_prompt", "graft", "caption"), block=1, write_layer=1)
    setup = Setup.of(sender(), receiver, given, plan, tmp_path)
    _, soft, graft, caption = fit_channels(setup).channels
    assert isinstance(soft, SoftPrompt)

    def of(channel: Channel) -> dict[str, float]:
        return drift.measure_drift(setup, [channel])[WHERE.name, channel.name]

    found = of(soft)
    mapped = soft.mapping(soft.eye.vision.read([each.image for each in given.testing], soft.eye.site))
    table = receiver.embedding_table.detach().float()
    assert found == combined_drift(mapped, fit_drift_reference(table[table.norm(dim=1) > 0]))
    assert math.isnan(of(graft)["drift"])  # 8 names: too few own states
    assert math.isnan(of(caption)["drift"])
    far = replace(soft, mapping=AffineMap(50 * soft.mapping.weight, soft.mapping.bias), name="far")
    assert of(far)["drift_above_95"] == 1.0
    assert of(soft) == found
    table = cross_modal(sender(), receiver, [given], plan=replace(plan, reply_tokens=1)).table
    rows = table.set_index(["channel", "condition"])["drift"].dropna()
    assert set(rows.index) == {("soft_prompt", "message")} and set(rows) == {found["drift"]}
