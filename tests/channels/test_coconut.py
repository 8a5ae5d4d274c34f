"""Continuous thoughts: each is the last state of what came before, and none is chain of thought."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from numerics import assert_equal_to_rounding, assert_same_bits, forward_terms
from tiny import BACKENDS, build, model, states
from torch import Tensor
from toys import toy

import latentcomm as lc
from latentcomm.alignment import AffineMap
from latentcomm.channels import Channel, Message
from latentcomm.channels.coconut import Coconut, CoconutLearner, marker, think
from latentcomm.channels.training.answers import answer_logits, cross_entropy
from latentcomm.channels.training.trainer import Schedule, Trainable, train
from latentcomm.hooks.decode import next_token_logits
from latentcomm.models import Model
from latentcomm.models.small import small_model, word_tokenizer
from latentcomm.tasks.prosqa import KINDS, TERSE, problems, prosqa, words

TASK = toy()
BEGIN, END = " note", " says"


def coconut(n: int, **options: float | AffineMap | None) -> Coconut:
    return Coconut("coconut", n, BEGIN, END, **options)  # type: ignore[arg-type]


def naive_thoughts(tiny: Model, ids: list[int], n: int) -> list[Tensor]:
    """Each thought from a pass over everything before it, with no cache."""
    name = f"blocks.{tiny.n_layers - 1}.hook_resid_post"
    thoughts: list[Tensor] = []
    for _ in range(n):

        def write(value: Tensor, hook: object) -> Tensor:
            value = value.clone()
            for place, thought in enumerate(thoughts):
                value[0, len(ids) + place] = thought
            return value

        kept: list[Tensor] = []
        tokens = torch.tensor([[*ids, *[9] * len(thoughts)]])
        tiny.forward(tokens, hooks=[("hook_embed", write), (name, lambda value, hook, kept=kept: kept.append(value))])
        thoughts.append(tiny.final_norm(kept[0][0])[-1])
    return thoughts


class TestThinking:
    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("architecture", ["llama", "gpt2"])
    def test_a_thought_is_the_last_state_of_all_that_was_read_and_thought(
        self, architecture: str, backend: str
    ) -> None:
        tiny = model(architecture, backend)
        tokens = torch.tensor([[5, 9, 20], [7, 8, 11]])
        found, _ = think(tiny, tokens, n=3)
        for row in range(2):
            expected = torch.stack(naive_thoughts(tiny, tokens[row].tolist(), 3))
            assert torch.allclose(found[row], expected, rtol=0, atol=1e-9)

    def test_gradients_go_through_every_thought(self) -> None:
        tiny = build("llama")
        for weight in tiny.hooked.parameters():
            weight.requires_grad_(True)
        found, _ = think(tiny, torch.tensor([[5, 9, 20]]), n=2, with_grad=True)
        found[0, 1].sum().backward()
        before = tiny.hooked.original_model.model.embed_tokens.weight.grad
        assert before is not None and before[5].abs().sum() > 0
        found, _ = think(tiny, torch.tensor([[5, 9, 20]]), n=2)
        assert not found.requires_grad

    def test_no_thought_at_all_and_too_many_are_refused(self) -> None:
        tiny = model("llama")
        with pytest.raises(ValueError, match="at least one thought"):
            think(tiny, torch.tensor([[5]]), n=0)
        with pytest.raises(ValueError, match="exceed the 40"):
            think(tiny, torch.tensor([[5]]), n=40)


class TestTheChannel:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_within_one_model_it_goes_on_from_its_own_thoughts(self, backend: str) -> None:
        tiny, said = model("llama", backend), coconut(2)
        assert isinstance(said, Channel)
        message = said.own(tiny, TASK)
        found = next_token_logits(tiny, said.receive(tiny, TASK, message))
        ids = [*tiny.tokenizer(TASK.items[0].receiver).input_ids, marker(tiny, BEGIN)]
        thoughts = naive_thoughts(tiny, ids, 2)
        tokens = torch.tensor([[*ids, 9, 9, marker(tiny, END)]])

        def write(value: Tensor, hook: object) -> Tensor:
            value = value.clone()
            value[0, len(ids) : len(ids) + 2] = torch.stack(thoughts)
            return value

        expected = tiny.forward(tokens, hooks=[("hook_embed", write)])[0, -1]
        assert torch.allclose(found[0], expected, rtol=0, atol=1e-9)
        with_markers_alone = tiny.forward(torch.tensor([[*ids, marker(tiny, END)]]))[0, -1]
        assert not torch.allclose(found[0], with_markers_alone, atol=1e-3)

    def test_without_thoughts_it_is_the_prompt_alone(self) -> None:
        tiny, said = model("llama"), coconut(0)
        found = next_token_logits(tiny, said.receive(tiny, TASK, said.send(tiny, TASK)))
        silent = lc.Silent()
        expected = next_token_logits(tiny, silent.receive(tiny, TASK, silent.send(tiny, TASK)))
        assert_equal_to_rounding(found, expected, terms=forward_terms(tiny))

    def test_the_senders_thoughts_are_a_message_that_moves_each_item(self, tmp_path: Path) -> None:
        tiny, said = model("llama"), coconut(2)
        message = said.send(tiny, TASK)
        assert message.nbytes() == [2 * 32 * 8] * len(TASK.items)
        message.save(tmp_path / "m")
        found = next_token_logits(tiny, said.receive(tiny, TASK, message))
        again = next_token_logits(tiny, said.receive(tiny, TASK, Message.load(tmp_path / "m")))
        assert_same_bits(found, again)
        assert len({tuple(row.tolist()) for row in found}) == len(TASK.items)  # one prompt for all: the message differs

    def test_a_norm_makes_every_thought_so_long(self) -> None:
        tiny = model("llama")
        for norm, equal in ((2.5, True), (None, False)):
            thoughts = [part["thoughts"] for part in coconut(2, norm=norm).send(tiny, TASK).parts or ()]
            lengths = torch.cat(thoughts).norm(dim=1)
            assert torch.allclose(lengths, torch.full_like(lengths, 2.5)) is equal

    def test_an_alignment_maps_thoughts_to_another_width_or_they_are_refused(self) -> None:
        sender, receiver = model("llama", d_model=16), model("llama")
        message = coconut(2).send(sender, TASK)
        with pytest.raises(ValueError, match="16 wide cannot enter"):
            coconut(2).receive(receiver, TASK, message)
        mapped = coconut(2, alignment=AffineMap(states(32, 16), states(32)))
        given = mapped.receive(receiver, TASK, message)
        assert given.soft is not None
        expected = (message.parts or ())[0]["thoughts"] @ states(32, 16).T + states(32)
        assert torch.allclose(given.soft.vectors[0], expected)
        assert coconut(2).carries_own(receiver) and not mapped.carries_own(receiver)

    def test_what_is_no_message_of_thoughts_and_no_marker_is_refused(self) -> None:
        tiny = model("llama")
        for message in (Message(states(8, 32), "a vector"), Message(None, "parts", parts=({},) * 8)):
            with pytest.raises(ValueError, match="needs a message of thoughts"):
                coconut(2).receive(tiny, TASK, message)
        with pytest.raises(ValueError, match="single token"):
            Coconut("c", 1, "Alice is", END).send(tiny, TASK)


class TestTheTraining:
    QUESTIONS, STEPS, ANSWERS = (
        ("Alice is", "The note at"),
        ((" at Peru.", " in Oman."), (" says.", " at.")),
        (" A", " B"),
    )

    def taught(self, stage: int, per_step: int, tiny: Model | None = None) -> CoconutLearner:
        tiny = build("llama") if tiny is None else tiny
        answers = (" Peru", " Italy")
        return CoconutLearner(tiny, self.QUESTIONS, self.STEPS, answers, BEGIN, END, stage, per_step)

    def naive(self, tiny: Model, stage: int, per_step: int) -> float:
        """The stage's loss from whole sequences, one at a time."""
        total, count = 0.0, 0
        for question, steps, answer in zip(self.QUESTIONS, self.STEPS, (" Peru", " Italy"), strict=True):
            ids = tiny.tokenizer(question).input_ids
            told = tiny.tokenizer(" ".join((*steps[stage if per_step else 0 :], answer))).input_ids
            told = [*told, tiny.tokenizer.eos_token_id]
            n = stage * per_step
            opened = [*ids, marker(tiny, BEGIN)] if per_step else ids
            thoughts = naive_thoughts(tiny, opened, n)
            before = [*opened, *[9] * n, *([marker(tiny, END)] if per_step else [])]

            def write(value: Tensor, hook: object, start: int = len(opened), thoughts: list = thoughts) -> Tensor:
                value = value.clone()
                for place, thought in enumerate(thoughts):
                    value[0, start + place] = thought
                return value

            logits = tiny.forward(torch.tensor([[*before, *told]]), hooks=[("hook_embed", write)])[0]
            total += float(F.cross_entropy(logits[len(before) - 1 : -1], torch.tensor(told), reduction="sum"))
            count += len(told)
        return total / count

    @pytest.mark.parametrize(("stage", "per_step"), [(0, 1), (1, 1), (2, 1), (1, 2), (0, 0), (2, 0)])
    def test_a_stages_loss_is_that_of_the_text_behind_its_thoughts(self, stage: int, per_step: int) -> None:
        taught = self.taught(stage, per_step)
        with torch.no_grad():
            found = float(taught.loss([0, 1], torch.Generator()))
        assert found == pytest.approx(self.naive(taught.model, stage, per_step), abs=1e-5)

    def test_steps_in_text_replace_thoughts_and_are_followed_by_the_end(self) -> None:
        tiny, answers = build("llama"), (" Peru", " Italy")
        taught = [
            CoconutLearner(tiny, self.QUESTIONS, self.STEPS, answers, BEGIN, END, stage, inside=True)
            for stage in (0, 2)
        ]
        told = [
            [*tiny.tokenizer(" ".join((*steps, END, answer))).input_ids, tiny.tokenizer.eos_token_id]
            for steps, answer in zip(self.STEPS, answers, strict=True)
        ]
        read = [[*tiny.tokenizer(question).input_ids, marker(tiny, BEGIN)] for question in self.QUESTIONS]
        total = 0.0
        for before, said in zip(read, told, strict=True):
            logits = tiny.forward(torch.tensor([[*before, *said]]))[0, len(before) - 1 : -1]
            total += float(F.cross_entropy(logits, torch.tensor(said), reduction="sum"))
        with torch.no_grad():
            found = float(taught[0].loss([0, 1], torch.Generator()))
            assert found == pytest.approx(total / sum(map(len, told)), abs=1e-5)
            thoughts, _ = think(tiny, torch.tensor([read[0]]), n=2)
            ends = [*tiny.tokenizer(" ".join((END, answers[0]))).input_ids, tiny.tokenizer.eos_token_id]
            start = len(read[0])

            def write(value: Tensor, hook: object) -> Tensor:
                value = value.clone()
                value[0, start : start + 2] = thoughts[0]
                return value

            logits = tiny.forward(torch.tensor([[*read[0], 0, 0, *ends]]), hooks=[("hook_embed", write)])[0]
            expected = float(F.cross_entropy(logits[start + 1 : -1], torch.tensor(ends)))
            assert float(taught[1].loss([0], torch.Generator())) == pytest.approx(expected, abs=1e-5)

    def test_without_thoughts_every_stage_is_chain_of_thought(self) -> None:
        tiny = build("llama")
        texts = [
            (q, " ".join((*s, a))) for q, s, a in zip(self.QUESTIONS, self.STEPS, (" Peru", " Italy"), strict=True)
        ]
        total, count = 0.0, 0
        for question, told in texts:  # what transformers itself calls the loss of a text, the question left out
            ids, said = tiny.tokenizer(question).input_ids, tiny.tokenizer(told).input_ids
            row = torch.tensor([[*ids, *said, tiny.tokenizer.eos_token_id]])
            labels = row.clone()
            labels[0, : len(ids)] = -100
            loss = tiny.hooked.original_model(row, labels=labels).loss
            total, count = total + float(loss.detach()) * (len(said) + 1), count + len(said) + 1
        for stage in (0, 1, 2):
            with torch.no_grad():
                found = float(self.taught(stage, 0, tiny).loss([0, 1], torch.Generator()))
            assert found == pytest.approx(total / count, abs=1e-5)
        with torch.no_grad():
            assert float(self.taught(1, 1, tiny).loss([0, 1], torch.Generator())) != pytest.approx(total / count)

    @pytest.mark.parametrize("norm", [None, 0.5])
    def test_its_thoughts_are_those_that_the_channel_of_that_norm_thinks(self, norm: float | None) -> None:
        tiny = build("llama")
        answers = (" Peru", " Italy")
        taught = CoconutLearner(tiny, self.QUESTIONS, self.STEPS, answers, BEGIN, END, 2, norm=norm)
        item = replace(TASK.items[0], sender=self.QUESTIONS[0], receiver=self.QUESTIONS[0])
        task = replace(TASK, items=(item,))
        told = [*tiny.tokenizer(" Peru").input_ids, tiny.tokenizer.eos_token_id]
        with torch.no_grad():
            found = float(taught.loss([0], torch.Generator()))
            losses = []
            for length in (norm, 2.0):
                said = Coconut("thinks", 2, BEGIN, END, norm=length)
                given = said.receive(tiny, task, said.own(tiny, task))
                losses.append(float(cross_entropy(answer_logits(tiny, given, [told], with_grad=False), [told])))
        assert found == pytest.approx(losses[0], abs=1e-4) and abs(found - losses[1]) > 1e-3

    def test_its_loss_falls_and_a_new_stage_begins_with_a_new_optimiser(self) -> None:
        tiny = small_model([*"abcdef", "?", "(", ")"], name="small", n_layers=1, d_model=32, n_ctx=16)
        texts = ("a b ?", "c d ?", "e f ?"), (("b", "a"), ("d", "c"), ("f", "e")), ("f", "b", "d")
        firsts = []
        for stage in (0, 1, 2):
            taught = CoconutLearner(tiny, *texts, "(", ")", stage)
            assert isinstance(taught, Trainable)
            done = train(taught, Schedule(steps=40, batch_size=3, learning_rate=1e-2))
            assert done.losses[-1] < 0.5 * done.losses[0] and done.losses[-1] < 0.5
            firsts.append(done.losses[0])
        task = prosqa(n=1)
        item = replace(task.items[0], sender="a b ?", receiver="a b ?", skyline="a b ?", answers=("f",))
        task = replace(task, items=(item,))
        said = Coconut("thinks", 2, "(", ")")
        reply = lc.generate(tiny, said.receive(tiny, task, said.own(tiny, task)), max_new_tokens=2)
        assert reply == ["f"]

    def test_examples_that_do_not_fit_are_refused(self) -> None:
        with pytest.raises(ValueError, match="the shortest solution has 2 steps"):
            self.taught(3, 1)
        with pytest.raises(ValueError, match="give one of each"):
            CoconutLearner(model("llama"), ("a",), (), (), BEGIN, END, 0)


class TestTheGraphs:
    def test_following_the_facts_gives_the_answer_and_the_steps(self) -> None:
        for problem in problems(50, n_steps=3, n_dead_ends=2):
            facts, asked = problem.question.rsplit(" . ", 1)
            *edges, named = [fact.split() for fact in facts.split(" . ")]
            following: dict[str, list[str]] = {}
            for fact in edges:
                following.setdefault(fact[1], []).append(fact[4])
            seen, border = set(), {named[3]}
            for _ in range(3):
                border = {upper for lower in border for upper in following.get(lower, [])}
                seen |= border
            assert problem.answer in border and problem.other not in seen
            assert set(asked.split()) >= {problem.answer, problem.other, named[0]}
            steps = [step.split() for step in problem.steps]
            assert steps[0][1] == named[3] and steps[-1][4] == problem.answer
            assert all(a[4] == b[1] for a, b in pairwise(steps))

    def test_another_wording_tells_the_same_graph_with_the_kinds_given(self) -> None:
        kinds = KINDS[:9]
        pairs = zip(
            problems(20, n_steps=3, kinds=kinds),
            problems(20, n_steps=3, kinds=kinds, wording=TERSE),
            strict=True,
        )
        for english, terse in pairs:
            said, facts = english.question.split(" . "), terse.question.split(" . ")
            assert [fact.split()[:2] for fact in facts[:-1]] == [fact.split()[1::3][:2] for fact in said[:-2]]
            one, _, other, _, name, start = facts[-1].split()
            assert said[-2].split() == [name, "is", "a", start]
            assert said[-1].split() == ["Is", name, "a", one, "or", "a", other, "?"]
            assert (english.answer, english.other) == (terse.answer, terse.other)
            assert {word for word in terse.question.split() if word in KINDS} <= set(kinds)
        with pytest.raises(ValueError, match="there are 9"):
            problems(1, n_steps=4, kinds=kinds)

    def test_neither_the_order_nor_a_count_gives_the_answer_away(self) -> None:
        found = problems(400, n_steps=2)
        first = sum(p.question.split()[-5] == p.answer for p in found)
        assert 150 < first < 250
        for p in found:
            words = p.question.split()
            assert words.count(p.answer) == words.count(p.other) == 2

    def test_more_of_them_only_adds_and_another_seed_gives_others(self) -> None:
        assert problems(5)[:3] == problems(3) != problems(3, seed=1)
        with pytest.raises(ValueError, match="there are 40"):
            problems(1, n_steps=30)
        assert prosqa(n=2).items[0].answers[0] in words()


class TestSmallModels:
    def test_words_are_tokens_and_come_back(self) -> None:
        words = word_tokenizer(["one", "two"])
        assert words("one two one").input_ids == [3, 4, 3] and words.decode([3, 4]) == "one two"
        assert words("three").input_ids == [words.unk_token_id]
        for wrong in (["one", "one"], ["a b"], ["<eos>"]):
            with pytest.raises(ValueError, match="word"):
                word_tokenizer(wrong)

    def test_a_seed_makes_the_model_and_its_vocabulary_is_the_words(self) -> None:
        first, again, other = (small_model(["one"], name="s", d_model=8, n_heads=2, seed=seed) for seed in (0, 0, 1))
        assert first.fingerprint == again.fingerprint != other.fingerprint
        assert lc.next_token_logits(first, lc.encode(first, ["one"])).shape == (1, 4)
        with pytest.raises(ValueError, match="3 heads do not divide"):
            small_model(["one"], name="s", d_model=8, n_heads=3)
