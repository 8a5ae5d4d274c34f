"""Debate in words: who reads what in which round, by hand; and how the votes are counted."""

from dataclasses import replace

import pytest
from numerics import assert_same_bits
from tiny import CHOICES, model
from toys import toy

from latentcomm.channels import Debate, Message
from latentcomm.channels.debate import APART, agent_models, same_answer, vote
from latentcomm.experiments.evaluation import evaluate
from latentcomm.hooks.decode import generate, next_token_logits
from latentcomm.models import Model, encode
from latentcomm.tasks import Item, Task, Verdict

TASK = toy()
SENDER, RECEIVER = model("llama"), model("llama", seed=1)
PLAIN = Debate(max_tokens=3, heard="{answer}", allow_empty=True)


def greedy(tiny: Model, text: str, tokens: int = 3) -> str:
    return generate(tiny, encode(tiny, [text]), max_new_tokens=tokens)[0]


def told(text: str, *answers: str, template: str = "{answer}") -> str:
    """What an agent reads after others' answers: each on a line of its own, those that are not empty."""
    lines = [template.replace("{answer}", answer.strip()) for answer in answers if answer.strip()]
    return "".join(f"{line}\n" for line in lines) + text


def said(message: Message, row: int) -> list[str]:
    assert message.texts is not None
    return message.texts[row].split(APART)


class TestTheRounds:
    @pytest.mark.parametrize("template", ["{answer}", "The note says {answer}."])
    def test_two_agents_read_each_other_before_their_own_text(self, template: str) -> None:
        channel = replace(PLAIN, heard=template)
        message = channel.send(SENDER, TASK, receiver=RECEIVER)
        given = channel.receive(RECEIVER, TASK, message)
        for row, item in enumerate(TASK.items):
            first = [greedy(SENDER, item.sender), greedy(RECEIVER, item.receiver)]
            second = greedy(SENDER, told(item.sender, first[1], template=template))
            assert said(message, row) == [first[0], second]
            read = told(item.receiver, first[0], template=template)
            assert given.prompts.ids(row).tolist() == RECEIVER.tokenizer(read).input_ids
        assert message.meant_for == RECEIVER.name

    def test_three_rounds(self) -> None:
        message = replace(PLAIN, rounds=3).send(SENDER, TASK, receiver=RECEIVER)
        for row, item in enumerate(TASK.items):
            a, b = [greedy(SENDER, item.sender)], [greedy(RECEIVER, item.receiver)]
            for _ in range(2):
                a, b = (
                    [*a, greedy(SENDER, told(item.sender, b[-1]))],
                    [*b, greedy(RECEIVER, told(item.receiver, a[-1]))],
                )
            assert said(message, row) == a

    def test_the_request_is_for_the_senders_agents(self) -> None:
        message = replace(PLAIN, request=" The").send(SENDER, TASK, receiver=RECEIVER)
        assert said(message, 0)[0] == greedy(SENDER, TASK.items[0].sender + " The")

    def test_an_answer_is_as_long_as_the_task_says_unless_the_channel_does(self) -> None:
        long = replace(PLAIN, max_tokens=None).send(SENDER, replace(TASK, reply_tokens=5), receiver=RECEIVER)
        assert said(long, 0)[0] == greedy(SENDER, TASK.items[0].sender, 5)

    def test_more_agents_take_turns_between_the_models_and_differ(self) -> None:
        names = [["s", "r"], ["s", "r", "r"], ["s", "r", "s", "r"], ["s", "r", "s", "r", "r"]]
        for expected in names:
            agents = agent_models("debate", SENDER, RECEIVER, len(expected))
            assert ["s" if agent is SENDER else "r" for agent in agents] == expected
        channel = replace(PLAIN, n_agents=4, temperature=3.0)
        message = channel.send(SENDER, TASK, receiver=RECEIVER)
        for row, item in enumerate(TASK.items):
            first = said(message, row)[:3]
            assert first[0] == greedy(SENDER, item.sender)
            assert len(said(message, row)) == 6
        thirds = [said(message, row)[2] for row in range(8)]
        assert thirds != [said(message, row)[0] for row in range(8)]  # the sender's second agent samples
        again, other = (replace(channel, seed=seed).send(SENDER, TASK, receiver=RECEIVER) for seed in (0, 1))
        assert again.texts == message.texts != other.texts

    def test_the_last_agent_hears_the_round_before_and_no_other(self) -> None:
        channel = replace(PLAIN, n_agents=3, rounds=3)
        rounds = [f"Greece{n} Italy{n}".split() for n in range(3)]
        message = Message(
            None, "by hand", texts=tuple(APART.join(answer for each in rounds for answer in each) for _ in TASK.items)
        )
        given = channel.receive(RECEIVER, TASK, message)
        expected = f"Greece1\nItaly1\n{TASK.items[0].receiver}"
        assert given.prompts.ids(0).tolist() == RECEIVER.tokenizer(expected).input_ids

    def test_a_mark_between_answers_that_an_agent_says_itself_does_no_harm(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        decode = Model.decode
        monkeypatch.setattr(Model, "decode", lambda self, ids: decode(self, ids) + APART)
        message = PLAIN.send(SENDER, TASK, receiver=RECEIVER)
        assert all(len(said(message, row)) == 2 for row in range(8))

    def test_what_cannot_be_is_refused(self) -> None:
        with pytest.raises(ValueError, match="the channel debate has 1 agents and 2 rounds"):
            Debate(n_agents=1)
        with pytest.raises(ValueError, match="has 2 agents and 1 rounds; a debate needs 2 or more of both"):
            Debate(rounds=1)
        with pytest.raises(ValueError, match="max_tokens of the channel debate is 0"):
            Debate(max_tokens=0)
        with pytest.raises(ValueError, match=r"heard is 'hm'; put \{answer\} where"):
            Debate(heard="hm")
        with pytest.raises(ValueError, match="the channel debate is a debate: give send the receiver too"):
            PLAIN.send(SENDER, TASK)
        with pytest.raises(ValueError, match="the message holds 1 answers an item and the channel debate needs 2"):
            PLAIN.receive(RECEIVER, TASK, Message(None, "by hand", texts=("Greece",) * 8))
        with pytest.raises(ValueError, match="needs a message of texts and got nothing"):
            PLAIN.receive(RECEIVER, TASK, Message(None, "nothing"))

    def test_debaters_of_whom_none_says_a_word_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Model, "decode", lambda self, ids: " ")
        with pytest.raises(ValueError, match="tiny-llama sent an empty message for item 'item-0'"):
            replace(PLAIN, allow_empty=False).send(SENDER, TASK, receiver=RECEIVER)
        message = PLAIN.send(SENDER, TASK, receiver=RECEIVER)
        found = next_token_logits(RECEIVER, PLAIN.receive(RECEIVER, TASK, message))
        alone = encode(RECEIVER, [item.receiver for item in TASK.items])
        assert_same_bits(found, next_token_logits(RECEIVER, alone))


class TestTheVote:
    ITEM = TASK.items[0]

    @pytest.mark.parametrize(
        ("answers", "winner"),
        [
            ([" Italy", " Italy.", " Peru"], " Italy"),  # two agree against the receiver
            ([" Italy", " Peru and so on", " Peru"], " Peru"),
            ([" Italy", " Peru", " Oman"], " Oman"),  # nobody is ahead: the receiver's own
            ([" Italy", " Peru"], " Peru"),
            ([" Italy", " italy, of course"], " italy, of course"),
            ([" Italy", ""], " Italy"),  # the receiver said nothing that could be parsed
            ([" ", "?"], "?"),
            ([" Italy", " Peru", " Italy", " Peru", " Oman"], " Oman"),
            ([" Atlantis", "the Atlantis. So", " Peru"], " Atlantis"),  # no candidate, by its first clause
        ],
    )
    def test_the_answer_of_most_is_taken_and_else_the_receivers(self, answers: list[str], winner: str) -> None:
        assert vote(TASK, self.ITEM, answers) == winner

    def test_the_longest_candidate_counts(self) -> None:
        task = Task("t", (Item("1", "s", "r", "k", ("Guinea",), " Guinea", {}),), (" Guinea", " Guinea Bissau"), "raw")
        assert same_answer(task, task.items[0], " Guinea Bissau is") == "Guinea Bissau"
        assert same_answer(task, task.items[0], " Guinea is") == "Guinea"

    def test_the_right_answer_has_no_advantage(self) -> None:
        """Its aliases are the judge's to know: to the vote two of them are two answers, as two wrong ones would be."""
        item = replace(self.ITEM, answers=("Greece", "Hellas"))
        assert vote(TASK, item, [" Greece", " Hellas", " Italy"]) == " Italy"
        assert vote(TASK, item, [" Italia", " Italy", " Peru"]) == " Peru"

    def test_goes_by_what_the_judge_finds(self) -> None:
        class LastWord:
            def __call__(self, reply: str, answers: object) -> Verdict:
                words = reply.split()
                return Verdict(False, bool(words), words[-1] if words else "")

        task = Task("t", (Item("1", "s", "r", "k", ("x",), "", {}),), (), "raw", judge=LastWord())
        assert vote(task, task.items[0], ["so it is 7", "therefore 7", "it is 8"]) == "so it is 7"

    def test_evaluate_judges_the_answer_of_the_vote_and_not_the_reply(self) -> None:
        channel = replace(PLAIN, n_agents=3)
        message = channel.send(SENDER, TASK, receiver=RECEIVER)
        found = evaluate(channel, SENDER, RECEIVER, TASK, controls=(), reply_tokens=3)
        replies = generate(RECEIVER, channel.receive(RECEIVER, TASK, message), max_new_tokens=3)
        expected = [
            vote(TASK, item, [*said(message, row)[-2:], reply])
            for row, (item, reply) in enumerate(zip(TASK.items, replies, strict=True))
        ]
        assert [one.reply for one in found] == expected

    def test_all_choices_are_told_apart(self) -> None:
        assert len({same_answer(TASK, self.ITEM, choice) for choice in CHOICES}) == len(CHOICES)
