from dataclasses import replace
from typing import Any

import pytest
import torch
from numerics import assert_same_bits
from seeing import country_pictures, drawn_map, noise, sender
from tiny import COUNTRIES, build, model, states

from latentcomm.alignment import AffineMap
from latentcomm.channels import Message, Skyline
from latentcomm.channels.training.trainer import Schedule, train
from latentcomm.experiments.controls import Sending, shuffled
from latentcomm.experiments.crossmodal import fitting
from latentcomm.experiments.crossmodal.captions import Caption, NearestLabel, NearestPicture, NearestWords
from latentcomm.experiments.crossmodal.channels import Eye, SoftPrompt, VisionGraft, in_caption_position
from latentcomm.experiments.crossmodal.pictures import Picture, PictureSet
from latentcomm.experiments.crossmodal.questions import Question, answerable, picture_task, told
from latentcomm.experiments.evaluation import evaluate
from latentcomm.hooks.capture import capture
from latentcomm.hooks.decode import next_token_logits
from latentcomm.models import encode
from latentcomm.models.sites import Site
from latentcomm.models.vision import VisionSite
from latentcomm.tasks.judging import is_correct

WHERE = Question("identity", "Alice is in the country of", "identity", COUNTRIES)
KIND = Question("category", "The country is", "category", COUNTRIES[:2])
PICTURES = country_pictures()
EYE = Eye(sender(), PICTURES, VisionSite(1, "class"))
TASK = picture_task(PICTURES, WHERE)


def planted(receiver: Any, n: int, *, width: int = 40, seed: int = 0) -> tuple[torch.Tensor, PictureSet, torch.Tensor]:
    """Vectors in which the embedding of each caption is mapped by a random linear map, their pictures, and that map."""
    pictures = country_pictures(n)
    target = fitting.caption_embeddings(receiver, [each.caption for each in pictures], n_tokens=1)
    hidden = states(width, receiver.d_model, seed=5, dtype=torch.float32)
    noisy = target @ hidden.T + 0.01 * states(n, width, seed=seed, dtype=torch.float32)
    return noisy, pictures, hidden


def test_a_question_is_a_task_whose_skyline_is_the_true_caption() -> None:
    item = TASK.items[1]
    assert (item.sender, item.receiver, item.answers, item.choice) == ("1", WHERE.ask, ("Italy",), " Italy")
    assert item.skyline == "Picture: Italy.\nAlice is in the country of"
    assert (item.tags["type"], item.tags["picture"]) == ("identity", "1")
    assert item.candidates == tuple(f" {name}" for name in COUNTRIES)
    assert picture_task(PICTURES, WHERE, template="chat").items[0].choice == "Greece"
    assert len(picture_task(PICTURES, KIND).candidates) == 2
    assert answerable(PICTURES, (WHERE, Question("count", "How many", "count"))) == (WHERE,)


def test_a_number_is_right_in_words_and_as_a_numeral_and_chosen_in_words() -> None:
    pictures = tuple(
        Picture(str(n), noise(n), f"{n} things", {"count": word}) for n, word in enumerate(("four", "ten"))
    )
    items = picture_task(PictureSet("many", pictures), Question("count", "How many? There are", "count")).items
    assert [item.choice for item in items] == [" four", " ten"]
    judged = [[is_correct(reply, item.answers) for item in items] for reply in (" 4.", " four", " 10", " 40", " tent")]
    assert judged == [[True, False], [True, False], [False, True], [False, False], [False, False]]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Question("taste", "It tastes", "taste"), "no question of the type 'taste'; choose among identity"),
        (lambda: picture_task(PICTURES, Question("count", "How many", "count")), "has the fact 'count'"),
        (lambda: picture_task(PICTURES, replace(WHERE, ask="At the {cell}")), "no fact 'cell'"),
        (lambda: picture_task(PICTURES, replace(WHERE, answers=("Greece",))), "at least two"),
        (lambda: PictureSet("none", ()), "has no pictures"),
        (lambda: PictureSet("two", (PICTURES["1"], PICTURES["1"])), "two pictures with the id '1'"),
        (lambda: PictureSet("one", (PICTURES["1"],)).split(seed=0), "no pictures on one side"),
        (lambda: PICTURES.split(seed=0, fraction=1.0), "between 0 and 1"),
        (lambda: PICTURES["nobody"], "there is no picture 'nobody'"),
        (lambda: Picture("", noise(0), "x"), "give it an id"),
    ],
)
def test_what_cannot_be_asked_is_refused(make: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        make()


def test_a_split_keeps_groups_whole_and_holds_every_picture_once() -> None:
    pictures = PictureSet("grouped", tuple(replace(each, group=f"g{int(each.id) // 3}") for each in PICTURES))
    fitting, testing = pictures.split(seed=0, fraction=0.75)
    assert not {each.group for each in fitting} & {each.group for each in testing}
    assert sorted(each.id for each in (*fitting, *testing)) == sorted(each.id for each in pictures)
    assert (len(fitting), len(testing)) == (18, 6)
    assert [each.id for each in pictures.split(seed=1)[0]] != [each.id for each in pictures.split(seed=0)[0]]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("template", ["raw", "chat"])
def test_the_embeddings_of_a_caption_give_the_logits_of_its_text(architecture: str, template: Any) -> None:
    receiver = model(architecture)
    task = picture_task(PICTURES, WHERE, template=template)
    exact = fitting.caption_embeddings(receiver, [PICTURES[item.sender].caption for item in task.items], n_tokens=1)
    soft = in_caption_position(receiver, task, exact[:, None])
    words = Skyline().receive(receiver, task, Message(None, "nothing"))
    assert_same_bits(soft.prompts.lengths, words.prompts.lengths)
    expected = next_token_logits(receiver, words)
    assert torch.allclose(next_token_logits(receiver, soft), expected, rtol=0, atol=1e-5)
    other = next_token_logits(receiver, in_caption_position(receiver, task, exact.roll(1, 0)[:, None]))
    assert (other - expected).abs().max() > 0.01


def test_a_planted_map_is_found_on_held_out_pictures_and_a_random_one_not() -> None:
    receiver = model("llama")
    vectors, pictures, hidden = planted(receiver, 80)
    found = fitting.fit_soft_prompt(vectors, pictures, receiver, n_tokens=1)
    fresh, held, _ = planted(receiver, 40, seed=9)
    target = fitting.caption_embeddings(receiver, [each.caption for each in held], n_tokens=1)
    assert found.r_squared(fresh, target) > 0.99
    unrelated = fitting.fit_soft_prompt(states(80, 40, seed=3, dtype=torch.float32), pictures, receiver, n_tokens=1)
    assert unrelated.r_squared(states(40, 40, seed=4, dtype=torch.float32), target) < 0.05
    wrong = fitting.fit_soft_prompt(vectors, pictures, receiver, n_tokens=1, shuffled=0)
    assert wrong.r_squared(fresh, target) < 0.05
    assert hidden.shape == (40, receiver.d_model)


def test_a_planted_soft_prompt_answers_as_the_oracle_unless_shuffled() -> None:
    receiver = model("llama")
    vectors, pictures, _ = planted(receiver, 80)
    task = picture_task(pictures, WHERE)
    channel = SoftPrompt(
        "soft",
        Eye(sender(), pictures, VisionSite(0)),
        fitting.fit_soft_prompt(vectors, pictures, receiver, n_tokens=1),
        1,
    )
    message = Message(vectors, "planted")
    oracle = next_token_logits(receiver, Skyline().receive(receiver, task, Message(None, "nothing")))
    near = next_token_logits(receiver, channel.receive(receiver, task, message))
    far = next_token_logits(
        receiver, channel.receive(receiver, task, shuffled(Sending(channel, receiver, receiver, task, message, 0)))
    )
    assert (near - oracle).norm() < 0.1 * (far - oracle).norm()


def test_captions_of_unequal_length_are_filled_with_full_stops() -> None:
    receiver = model("llama")
    captions = ["Greece", "Greece is the country"]
    assert fitting.caption_length(receiver, captions) == 4
    table = receiver.embedding_table.float()
    stop = encode(receiver, ["."]).ids(0)[0]
    filled = fitting.caption_embeddings(receiver, captions, n_tokens=4).unflatten(1, (4, -1))
    assert_same_bits(filled[0, 1:], table[stop].expand(3, -1))
    assert_same_bits(filled[1], table[encode(receiver, [" Greece is the country"]).ids(0)])
    assert torch.allclose(fitting.caption_embeddings(receiver, captions)[1], filled[1].mean(0), atol=1e-6)
    with pytest.raises(ValueError, match="has 4 tokens, more than n_tokens 2"):
        fitting.caption_embeddings(receiver, captions, n_tokens=2)


def test_a_graft_is_fitted_to_the_state_of_one_who_has_read_the_name() -> None:
    receiver = model("llama")
    site = Site(1)
    target = fitting.informed_states(receiver, TASK, [site])[site]
    one = capture(receiver, encode(receiver, [told("Peru", WHERE.ask)]), [site]).last(site)[0]
    assert torch.allclose(target[2], one.float(), atol=1e-5)
    hidden = states(40, receiver.d_model, seed=5, dtype=torch.float32)
    maps = fitting.fit_vision_graft(target @ hidden.T, PICTURES, [WHERE, KIND], receiver, [site])[site]
    assert set(maps) == {"identity", "category"}
    assert maps["identity"].r_squared(target @ hidden.T, target) > 0.99
    channel = VisionGraft("graft", EYE, site, maps)
    entering = channel.receive(receiver, TASK, Message(target @ hidden.T, "planted"))
    written = entering.grafts[0].vector.float()
    assert (written - target).norm() < 0.02 * (written.roll(1, 0) - target).norm()
    with pytest.raises(ValueError, match="has no map for the question 'category'"):
        replace(channel, maps={"identity": maps["identity"]}).receive(
            receiver, picture_task(PICTURES, KIND), Message(target @ hidden.T, "planted")
        )


def test_the_nearest_caption_is_that_of_the_nearest_centred_vector() -> None:
    known = 100 + states(6, 5, seed=1, dtype=torch.float32)
    say = NearestPicture(known, tuple("abcdef"))
    rows = known[[4, 2, 2]] + 0.01
    assert say(rows) == ["e", "c", "c"]
    receiver = model("llama")
    targets = fitting.caption_embeddings(receiver, list(COUNTRIES), n_tokens=1)
    hidden = drawn_map(receiver.d_model, receiver.d_model)
    inverse = fitting.fit_soft_prompt(hidden(targets).repeat(3, 1), PICTURES, receiver, n_tokens=1)
    assert NearestLabel(inverse, targets, COUNTRIES)(hidden(targets)) == list(COUNTRIES)


def test_a_caption_word_by_word_says_what_no_picture_was_called() -> None:
    receiver = model("llama")
    captions = ["Greece is Peru", "Italy is Japan", "Egypt"]
    rows = fitting.caption_tokens(receiver, captions, n_tokens=3)
    places = tuple(tuple(dict.fromkeys(ids)) for ids in zip(*rows, strict=True))
    say = NearestWords(AffineMap.identity(3 * receiver.d_model), receiver, places)
    known = fitting.caption_embeddings(receiver, captions, n_tokens=3)
    noisy = known + 0.1 * known.std() * states(*known.shape, dtype=torch.float32)
    assert say(noisy) == captions
    new = fitting.caption_embeddings(receiver, ["Greece is Japan", "Peru is Japan"], n_tokens=3)
    assert say(new)[0] == "Greece is Japan"  # each token at its own place
    assert say(new)[1].split()[1:] == ["is", "Japan"] and say(new)[1] not in ("Peru is Japan", *captions)
    assert NearestLabel(say.mapping, known, tuple(captions))(new)[0] in captions  # which whole captions cannot say
    with pytest.raises(ValueError, match="1 tokens of"):
        NearestWords(say.mapping, receiver, places[:1])
    with pytest.raises(ValueError, match="no candidate tokens"):
        NearestWords(say.mapping, receiver, (*places[:2], ()))


def test_channels_run_in_the_evaluation_with_their_shuffled_message() -> None:
    receiver = model("llama")
    vectors = EYE.vectors_of(receiver, TASK)
    soft = SoftPrompt("soft", EYE, fitting.fit_soft_prompt(vectors, PICTURES, receiver, n_tokens=1), 1)
    trials = evaluate(soft, receiver, receiver, TASK, reply_tokens=1)
    assert {trial.condition for trial in trials} == {"message", "shuffled", "zero", "random"}
    assert {trial.message_bytes for trial in trials} == {16 * 4}
    assert all(trial.sender_flops > 0 for trial in trials)
    caption = Caption("caption", EYE, NearestPicture(vectors, tuple(each.caption for each in PICTURES)))
    message = caption.send(receiver, TASK)
    assert message.texts == tuple(
        each.caption for each in PICTURES
    )  # the nearest of the pictures is the picture itself
    assert message.made_by["fingerprint"] == EYE.vision.fingerprint


class Elsewhere(AffineMap):
    """A map on another device, which takes rows from there alone; it gives zeros on the processor."""

    def __init__(self, d_out: int) -> None:
        object.__setattr__(self, "weight", torch.empty(d_out, 16, device="meta"))
        object.__setattr__(self, "bias", torch.empty(d_out, device="meta"))

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        assert rows.device.type == "meta"
        return torch.zeros(*rows.shape[:-1], self.d_out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vectors_go_to_where_the_map_is_and_what_it_gives_to_the_receiver(dtype: torch.dtype) -> None:
    receiver = build("llama", dtype=dtype)
    message = EYE.message(receiver, TASK)
    there = Elsewhere(receiver.d_model)
    soft = SoftPrompt("soft", EYE, there, 1).receive(receiver, TASK, message).soft
    graft = VisionGraft("graft", EYE, Site(1), {"": there}).receive(receiver, TASK, message).grafts[0]
    assert soft is not None and soft.vectors[0].device == graft.vector.device == receiver.device
    assert soft.vectors[0].dtype == graft.vector.dtype == dtype
    assert len(NearestLabel(there, states(3, receiver.d_model), ("a", "b", "c"))(states(2, 16))) == 2
    own = SoftPrompt("soft", EYE, drawn_map(16, receiver.d_model), 1)
    assert next_token_logits(receiver, own.receive(receiver, TASK, message)).isfinite().all()


def test_what_does_not_fit_is_refused() -> None:
    receiver = model("llama")
    message = EYE.message(receiver, TASK)
    with pytest.raises(ValueError, match="gives 5 entries and 2 soft tokens"):
        SoftPrompt("soft", EYE, drawn_map(16, 5), 2).receive(receiver, TASK, message)
    with pytest.raises(ValueError, match="3 vectors for 24 pictures"):
        fitting.fit_soft_prompt(states(3, 8, dtype=torch.float32), PICTURES, receiver, n_tokens=1)
    with pytest.raises(ValueError, match="penalty 0 needs a source of full rank"):
        fitting.fit_soft_prompt(states(24, 80, dtype=torch.float32), PICTURES, receiver, n_tokens=1, penalty=0)


def test_training_through_the_frozen_receiver_lowers_the_loss() -> None:
    receiver = build("llama", dtype=torch.float32)
    before = receiver.fingerprint
    vectors = {each.id: row for each, row in zip(PICTURES, EYE.vectors_of(receiver, TASK), strict=True)}
    learner = fitting.SoftPromptLearner.of(receiver, [TASK], vectors, drawn_map(16, receiver.d_model))
    found = train(learner, Schedule(steps=80, batch_size=8, learning_rate=0.05), frozen=[receiver])
    assert sum(found.losses[-5:]) < 0.6 * sum(found.losses[:5])
    assert receiver.fingerprint == before
    by_hand = SoftPrompt("soft", EYE, learner.mapping, 1).receive(receiver, TASK, EYE.message(receiver, TASK))
    right = torch.tensor([receiver.first_token(item.choice) for item in TASK.items])
    loss = torch.nn.functional.cross_entropy(next_token_logits(receiver, by_hand).float(), right)
    with torch.no_grad():
        assert learner.loss(range(24), torch.Generator()).item() == pytest.approx(loss.item(), abs=1e-4)
    with pytest.raises(ValueError, match="the picture '0' has no vector"):
        fitting.SoftPromptLearner.of(receiver, [TASK], {}, drawn_map(16, receiver.d_model))
