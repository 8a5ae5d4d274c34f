"""The sweep: its ends, its costs against recorded passes, its controls and its table by hand, and what it refuses."""

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from cascades import HAND_OFFS, LIMIT, NS, STOPS, TRIAL, greedy, large, of_bytes, prompt_ids, single, small, task

from latentcomm.alignment import AffineMap
from latentcomm.channels.message import Message
from latentcomm.channels.text import item_seed
from latentcomm.experiments.cascade import (
    Cascade,
    CascadeSweep,
    Confident,
    EntropyDrop,
    FixedTokens,
    KVHandOff,
    LatentHandOff,
    SentenceEnd,
    TextHandOff,
    sweep_cascade,
    write_openings,
)
from latentcomm.experiments.cascade import continuations as handing
from latentcomm.experiments.cascade.openings import EMBEDDING, openings_of
from latentcomm.experiments.cascade.resume import continue_rows
from latentcomm.experiments.cascade.trials import (
    CascadeTrial,
    holds_answer,
    opening_flops,
)
from latentcomm.experiments.cascade.votes import _vote, held_votes
from latentcomm.experiments.controls import CONTROLS as ALL_CONTROLS
from latentcomm.experiments.controls import Sending
from latentcomm.experiments.cost import ModelSize, flops
from latentcomm.experiments.evaluation import evaluate
from latentcomm.hooks.decode import decode, generate
from latentcomm.models import Model, encode, recorded_passes
from latentcomm.tasks import Item, Task
from latentcomm.tasks.judging import Begins, Contains, Letter, Number


@pytest.fixture(scope="module")
def swept() -> CascadeSweep:
    return sweep_cascade(large(), small(), task(), hand_offs=HAND_OFFS, ns=NS, stops=STOPS)


def of(swept: CascadeSweep, hand_off: str, stop: str, condition: str = "message") -> list[CascadeTrial]:
    return [
        trial for trial in swept.trials if (trial.channel, trial.stop, trial.condition) == (hand_off, stop, condition)
    ]


def alone(model: Model) -> list[str]:
    return generate(model, encode(model, [item.receiver for item in task().items]), max_new_tokens=LIMIT)


class TestTheEnds:
    @pytest.mark.parametrize("hand_off", HAND_OFFS)
    def test_no_token_is_the_small_model_alone_and_all_tokens_the_large_one(
        self, swept: CascadeSweep, hand_off: str
    ) -> None:
        assert [trial.reply for trial in of(swept, hand_off, "0")] == alone(small())
        assert [trial.reply for trial in of(swept, hand_off, str(LIMIT))] == alone(large())
        assert alone(small()) != alone(large())
        assert all(trial.finished and trial.receiver_flops == 0 for trial in of(swept, hand_off, str(LIMIT)))
        assert all(trial.sender_flops == 0 and not trial.finished for trial in of(swept, hand_off, "0"))

    def test_both_stand_beside_it_once_an_item(self, swept: CascadeSweep) -> None:
        assert [trial.reply for trial in of(swept, "none", "0", "silent")] == alone(small())
        assert [trial.reply for trial in of(swept, "none", "all", "large")] == alone(large())

    def test_what_ends_before_n_is_the_large_models_whole_reply(self) -> None:
        for seed in range(1, 6):
            writer = tiny.model("llama", seed=seed)
            rows = openings_of(write_openings(writer, task()))
            if any(row.ended for row in rows):
                break
        found = Cascade(writer, small(), TextHandOff(), FixedTokens(LIMIT - 1)).run(task())
        ended = [(trial, row) for trial, row in zip(found, rows, strict=True) if row.ended]
        assert ended
        assert all(
            trial.finished and trial.reply == writer.decode(row.ids) and trial.n == len(row) for trial, row in ended
        )
        assert all(trial.finished is row.ended for trial, row in zip(found, rows, strict=True))
        number = next(number for number, row in enumerate(rows) if row.ended and len(row) > 0)
        n, item = len(rows[number]), task().items[number]
        (at,), (after,) = (
            Cascade(writer, small(), TextHandOff(), FixedTokens(each)).run(single(item)) for each in (n, n + 1)
        )
        assert (at.n, at.finished, after.n, after.finished) == (n, False, n, True)  # nobody knows yet that it ends
        assert at.receiver_flops > 0 == after.receiver_flops
        assert at.sender_flops < after.sender_flops


class TestStops:
    def test_one_that_never_fires_hands_over_at_the_longest_n_and_says_so(self, swept: CascadeSweep) -> None:
        never = of(swept, "text", "never")
        assert [trial.fired for trial in never] == [False] * 5
        assert [trial.reply for trial in never] == [trial.reply for trial in of(swept, "text", str(LIMIT))]

    def test_one_that_would_fire_after_the_largest_n_does_not_see_so_far(self) -> None:
        late = {"late": Confident(0, window=5), "soon": Confident(0, window=2)}
        found = sweep_cascade(
            large(), small(), task(), hand_offs={"text": TextHandOff()}, ns=(0, 3), stops=late, controls=()
        )
        assert {(trial.n, trial.fired) for trial in of(found, "text", "late")} == {(3, False)}
        assert {(trial.n, trial.fired) for trial in of(found, "text", "soon")} == {(2, True)}

    def test_one_that_fires_hands_over_where_it_says(self, swept: CascadeSweep) -> None:
        drop = of(swept, "text", "drop")
        for trial, row in zip(drop, openings_of(swept.openings), strict=True):
            at = EntropyDrop(0.9, 2, 3).at(row)
            assert (trial.fired, trial.n) == ((True, at) if at is not None else (False, len(row)))
        assert any(trial.fired for trial in drop)

    def test_a_stop_at_a_number_is_that_number(self, swept: CascadeSweep) -> None:
        assert [replace(trial, stop="2") for trial in of(swept, "kv", "first")] == of(swept, "kv", "2")

    def test_the_oracle_takes_the_smallest_right_n_or_the_smallest(self, swept: CascadeSweep) -> None:
        for hand_off in HAND_OFFS:
            grid = [of(swept, hand_off, str(n)) for n in NS]
            for number, trial in enumerate(of(swept, hand_off, "oracle")):
                right = next((each[number] for each in grid if each[number].free), None)
                assert trial == replace(right or grid[0][number], stop="oracle", fired=right is not None)

    def test_a_cascade_is_the_row_of_the_sweep(self, swept: CascadeSweep) -> None:
        for stop, name in ((EntropyDrop(0.9, 2, 3), "drop"), (FixedTokens(5), "5"), (FixedTokens(0), "0")):
            found = Cascade(large(), small(), TextHandOff(), stop).run(task(), openings=swept.openings)
            wanted = of(swept, "text", name)
            for mine, theirs in zip(found, wanted, strict=True):
                assert mine.surprise == pytest.approx(theirs.surprise)
                assert replace(mine, stop=name, surprise=theirs.surprise) == theirs


class TestCosts:
    @pytest.mark.parametrize("n", [1, 4, LIMIT - 1])
    @pytest.mark.parametrize("name", [*HAND_OFFS, "mapped"])
    def test_flops_are_those_of_the_passes_of_this_n_run_alone(self, name: str, n: int) -> None:
        mapped = LatentHandOff(1, alignment=AffineMap(tiny.states(16, 32), tiny.states(16)))
        hand_off, reader = (mapped, of_bytes()) if name == "mapped" else (HAND_OFFS[name], small())
        asked = single(task().items[1])
        (trial,) = Cascade(large(), reader, hand_off, FixedTokens(n)).run(asked)
        assert not trial.finished
        with recorded_passes() as passes:
            opened = write_openings(large(), asked, longest=n, layers=hand_off.layers, keep_cache=hand_off.needs_cache)
        assert trial.sender_flops == flops(passes)
        received = hand_off.enter(reader, asked, hand_off.content(opened), [n])
        with recorded_passes() as passes:
            continue_rows(reader, received.given, [LIMIT - n])
        assert trial.receiver_flops == flops(passes) + (2 * n * 16 * 32 if name == "mapped" else 0)

    def test_so_are_those_of_the_two_alone_whether_they_end_or_are_cut(self) -> None:
        kinds = []
        for seed in range(5):
            writer = tiny.model("llama", seed=seed)
            with recorded_passes() as passes:
                (row,) = openings_of(write_openings(writer, single(task().items[0])))
            assert opening_flops(ModelSize.of(writer), row, len(row), finished=True) == flops(passes)
            kinds.append(row.ended)
        assert True in kinds
        assert False in kinds

    def test_the_large_model_runs_once_whatever_is_swept(self) -> None:
        def passes_of(ns: tuple[int, ...], stops: dict[str, SentenceEnd]) -> int:
            with recorded_passes() as passes:
                sweep_cascade(
                    large(), small(), task(), hand_offs={"text": TextHandOff()}, ns=ns, stops=stops, controls=()
                )
            return sum(each.rows * each.n_new for each in passes if each.model is large())

        assert passes_of((0, 1, 2, 3, 5, LIMIT), {"end": SentenceEnd()}) == passes_of((LIMIT,), {})

    def test_each_pair_of_item_and_n_is_run_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[tuple[int, ...]] = []
        done = handing.continue_openings

        def counted(*given: Any) -> Any:
            asked.extend(tuple(ns) for ns in given[2].wanted)
            return done(*given)

        monkeypatch.setattr(handing, "continue_openings", counted)
        stops = {"a": FixedTokens(2), "b": FixedTokens(3), "c": FixedTokens(5), "none": Confident(1.0, 9)}
        sweep_cascade(large(), small(), task(), hand_offs={"kv": KVHandOff()}, ns=(2, 5), stops=stops, controls=())
        assert asked == [(2, 3, 5)] * 5


class TestControls:
    def test_another_items_opening_stands_behind_the_own_prompt(self, swept: CascadeSweep) -> None:
        texts = {row.text_at(5): item for row, item in zip(openings_of(swept.openings), task().items, strict=True)}
        for item, trial in zip(task().items, of(swept, "text", "5", "shuffled"), strict=True):
            whose = texts[trial.opening]
            assert whose.answers != item.answers
            row = openings_of(swept.openings)[task().items.index(whose)]
            said, _ = greedy(small(), [*prompt_ids(small(), item), *row.ids[:5]], LIMIT - 5)
            assert trial.reply == small().decode([*row.ids[:5], *said])
        used = Counter(trial.opening for trial in of(swept, "text", "5", "shuffled"))
        assert set(used.values()) == {1}

    @pytest.mark.parametrize("hand_off", HAND_OFFS)
    def test_the_small_models_own_opening_is_the_small_model_alone(self, swept: CascadeSweep, hand_off: str) -> None:
        for stop in ("2", "5", "drop"):
            found = of(swept, hand_off, stop, "self")
            assert [trial.reply for trial in found] == alone(small())
            assert all(trial.sender_flops == 0 < trial.receiver_flops for trial in found)

    @pytest.mark.parametrize("name", HAND_OFFS)
    def test_it_costs_what_a_cascade_of_the_small_model_with_itself_costs(self, swept: CascadeSweep, name: str) -> None:
        own = HAND_OFFS[name].to_itself()
        assert own is not None
        both = Cascade(small(), small(), own, FixedTokens(5)).run(task())
        assert [trial.receiver_flops for trial in of(swept, name, "5", "self")] == [trial.flops for trial in both]

    def test_another_items_opening_costs_what_writing_it_cost(self, swept: CascadeSweep) -> None:
        whose = {row.text_at(5): item for row, item in zip(openings_of(swept.openings), task().items, strict=True)}
        lengths = {len(prompt_ids(large(), item)) for item in task().items}
        assert len(lengths) > 1
        for trial in of(swept, "text", "5", "shuffled"):
            with recorded_passes() as passes:
                write_openings(large(), single(whose[trial.opening]), longest=5)
            assert trial.sender_flops == flops(passes)

    def test_the_answer_is_looked_for_in_the_opening_alone(self, swept: CascadeSweep) -> None:
        lasts = [row.text_at(5).split()[-1] for row in openings_of(swept.openings)]
        items = tuple(replace(item, answers=(last,)) for item, last in zip(task().items, lasts, strict=True))
        asked = replace(task(), items=items)
        found = sweep_cascade(large(), small(), asked, hand_offs={"text": TextHandOff()}, ns=(1, 5), controls=())
        for stop in ("1", "5"):
            for item, trial in zip(items, of(found, "text", stop), strict=True):
                assert trial.answer_in_opening is holds_answer(trial.opening, item.answers, asked.judge)
        assert all(trial.answer_in_opening for trial in of(found, "text", "5"))
        assert not all(trial.answer_in_opening for trial in of(found, "text", "1"))

    def test_a_vote_costs_what_its_replies_cost_one_by_one(self) -> None:
        asked, trial, ended = single(task().items[0]), TRIAL, []
        told, alone_trials = [replace(trial, receiver_flops=2.0, sender_flops=1.0)], [replace(trial, sender_flops=0.0)]
        for seed in range(3):
            (vote,) = held_votes(small(), asked, told, alone_trials, seed=seed, folder=None, decisive=())
            prompts, item = encode(small(), [asked.items[0].receiver]), asked.items[0]
            with recorded_passes() as passes:
                said = [
                    decode(small(), prompts, max_new_tokens=LIMIT, temperature=0.7, seeds=[item_seed(item, seed, nr)])
                    for nr in range(3)
                ]
            assert (vote.votes, vote.receiver_flops) == (3, flops(passes))
            assert vote.reply_tokens == sum(each.n_tokens[0] for each in said)
            ended += [each.n_tokens[0] < LIMIT for each in said]
        assert True in ended
        assert False in ended

    def test_soft_tokens_without_a_map_for_itself_have_no_own(self) -> None:
        found = sweep_cascade(
            large(), small(), task(), hand_offs={"soft": LatentHandOff(0)}, ns=(2,), controls=("self",)
        )
        assert {trial.condition for trial in found.trials} == {"silent", "large", "message"}

    def test_a_vote_is_held_among_as_many_replies_as_the_cascade_costs(self, swept: CascadeSweep) -> None:
        single_cost = [trial.flops for trial in of(swept, "none", "0", "silent")]
        for stop in ("2", "5", "drop", str(LIMIT)):
            told, votes = of(swept, "text", stop), of(swept, "text", stop, "self-consistency")
            wanted = max(1, round(sum(trial.flops for trial in told) / sum(single_cost)))
            assert [trial.votes for trial in votes] == [wanted] * 5
            assert all(trial.sender_flops == 0 for trial in votes)

    def test_the_majority_of_what_was_found_wins_and_of_equals_the_first(self) -> None:
        def vote(judged: Task, replies: list[str]) -> CascadeTrial:
            drawn = [(reply, 3) for reply in replies]
            return _vote(judged, 0, drawn, hand_off="text", stop="2", receiver_flops=1.0)

        numbers = replace(single(Item("x", "s", "r", "s r", ("4",), "")), judge=Number())
        assert vote(numbers, ["so 5", "so 4", "no idea", "4.0"]).free
        assert not vote(numbers, ["so 5", "so 4"]).free
        assert vote(numbers, ["no", "so 4"]).free
        words = replace(single(Item("x", "s", "r", "s r", ("Warsaw",), "")), judge=Contains())
        replies = ["Paris.", "Warsaw!", "It is\nRome", "warsaw", "Oslo", "rome"]
        assert vote(words, replies[:5]).free  # the wrong ones are not one answer
        assert not vote(words, [*replies, "Rome", "rome!"]).free
        nothing = vote(numbers, ["no", "nor this"])
        assert (nothing.free, nothing.parsed, nothing.reply, nothing.votes) == (False, False, "no", 2)

    def test_no_control_stands_at_no_tokens(self, swept: CascadeSweep) -> None:
        assert {trial.condition for trial in swept.trials if trial.stop == "0" and trial.channel != "none"} == {
            "message"
        }


class TestEvaluate:
    @pytest.mark.parametrize("name", HAND_OFFS)
    def test_a_hand_off_is_a_channel_whose_trials_are_those_of_the_sweep(self, swept: CascadeSweep, name: str) -> None:
        channel = replace(HAND_OFFS[name], longest=5)  # type: ignore[type-var]
        found = evaluate(channel, large(), small(), task(), reply_tokens=LIMIT - 5)
        of_states = {"zero"} if name in ("graft", "soft") else set()
        for condition in {"message", "shuffled", "self"} | of_states:
            mine = [trial.reply.replace(" ", "") for trial in found if trial.condition == condition]
            theirs = [trial.reply.replace(" ", "") for trial in of(swept, name, "5", condition)]
            assert mine == theirs  # the words of the tiny tokenizer lose the space between opening and reply

    def test_keys_and_values_have_no_zeros_and_no_random_directions(self) -> None:
        found = evaluate(replace(HAND_OFFS["kv"], longest=2), large(), small(), task(3), reply_tokens=1)  # type: ignore[type-var]
        assert {trial.condition for trial in found} == {"message", "shuffled", "self"}
        sent = Sending(HAND_OFFS["kv"], large(), small(), task(3), KVHandOff(longest=2).send(large(), task(3)), 0)
        for control in ("zero", "random"):
            with pytest.raises(ValueError, match=f"the control {control} would take the problem from the hand-off kv"):
                ALL_CONTROLS[control](sent)

    def test_a_hand_off_without_stable_content_is_refused_at_once(self, tmp_path: Path) -> None:
        loose = LatentHandOff(1, 1, fusion=lambda own, incoming: incoming)
        message = "^{} cannot be part of a checkpoint's key, since function has no digest; make it a frozen dataclass"
        with recorded_passes() as passes:
            with pytest.raises(ValueError, match=message.format("hand_offs")):
                sweep_cascade(large(), small(), task(), hand_offs={"loose": loose}, ns=NS, checkpoint=tmp_path)
            with pytest.raises(ValueError, match=message.format("hand_off")):
                Cascade(large(), small(), loose, FixedTokens(2)).run(task(), checkpoint=tmp_path)
        assert passes == []

    def test_it_refuses_as_a_cascade_does(self) -> None:
        with pytest.raises(ValueError, match="has no alignment"):
            evaluate(LatentHandOff(1, longest=2), large(), of_bytes(), task())
        with pytest.raises(ValueError, match="a message of by hand holds no opening"):
            TextHandOff().receive(small(), task(1), Message(None, "by hand", texts=("Petra",)))
        text = TextHandOff().send(large(), task(1))
        with pytest.raises(ValueError, match="holds no states; send one with a latent hand-off"):
            LatentHandOff(1).receive(small(), task(1), text)
        with pytest.raises(ValueError, match="has no map of the small model's own states"):
            LatentHandOff(1).own(small(), task(1))


class TestSignals:
    def test_entropy_and_margin_are_those_of_the_last_four_tokens(self, swept: CascadeSweep) -> None:
        for trial, row in zip(of(swept, "graft", "5"), openings_of(swept.openings), strict=True):
            assert trial.entropy == pytest.approx(float(row.entropy[1:5].mean()))
            assert trial.margin == pytest.approx(float(row.margin[1:5].mean()))
        assert all(trial.entropy is None for trial in of(swept, "graft", "0"))

    def test_surprise_is_that_of_the_opening_under_the_small_model(self, swept: CascadeSweep) -> None:
        for item, trial, row in zip(task().items, of(swept, "text", "5"), openings_of(swept.openings), strict=True):
            ids = prompt_ids(small(), item)
            log_p = small().forward(torch.tensor([[*ids, *row.ids[:5]]]))[0].double().log_softmax(-1)
            wanted = [-float(log_p[len(ids) - 1 + at, token]) for at, token in enumerate(row.ids[:5])]
            assert trial.surprise == pytest.approx(sum(wanted) / 5, rel=1e-5)

    @pytest.mark.parametrize(
        ("text", "answers", "found"),
        [
            ("so 18 eggs", ("18",), True),
            ("so $1,018", ("18",), False),
            ("so 1,000 eggs", ("1000",), True),
            ("3.5 or 13", ("3",), False),
            ("so 18.0", ("18",), True),
        ],
    )
    def test_a_number_stands_in_an_opening_as_that_number(self, text: str, answers: tuple[str], found: bool) -> None:
        assert holds_answer(text, answers, Number()) is found

    def test_a_word_stands_there_as_a_word_and_a_letter_as_a_choice(self) -> None:
        assert holds_answer("she is in Niger now", ("Niger",), Begins())
        assert not holds_answer("she is in Nigeria", ("Niger",), Begins())
        assert holds_answer("**B**, because", ("B",), Letter())
        assert not holds_answer("A man", ("B",), Letter())


def test_the_same_seed_gives_the_same_trials_and_another_other_votes(swept: CascadeSweep) -> None:
    def votes(seed: int) -> list[dict[str, object]]:
        found = sweep_cascade(
            large(),
            small(),
            task(),
            hand_offs={"text": TextHandOff()},
            ns=(5,),
            controls=("self-consistency",),
            seed=seed,
        )
        return [asdict(trial) for trial in found.trials if trial.condition == "self-consistency"]

    assert votes(0) == [asdict(trial) for trial in of(swept, "text", "5", "self-consistency")]
    assert votes(0) != votes(1)


def test_every_hand_off_stop_and_condition_has_its_row(swept: CascadeSweep) -> None:
    table = swept.table()
    assert len(table) == len({(t.channel, t.stop, t.condition) for t in swept.trials})
    assert (table["n"] == 5).all()
    assert table["flops"].tolist() == pytest.approx((table["large_flops"] + table["small_flops"]).tolist())


class TestRefusals:
    def test_an_n_beyond_what_is_written_is_refused(self) -> None:
        with pytest.raises(ValueError, match="n is 11, and the large model writes 10 tokens at most in task 'opened'"):
            sweep_cascade(large(), small(), task(), hand_offs={"text": TextHandOff()}, ns=(0, 11))
        with pytest.raises(ValueError, match="n is -1"):
            sweep_cascade(large(), small(), task(), hand_offs={"text": TextHandOff()}, ns=(-1,))
        short = write_openings(large(), task(), longest=3)
        with pytest.raises(ValueError, match="n is 4, and the large model wrote 3 tokens at most"):
            Cascade(large(), small(), TextHandOff(), FixedTokens(4)).run(task(), openings=short)
        assert len(Cascade(large(), small(), TextHandOff(), FixedTokens(3)).run(task(), openings=short)) == 5

    def test_openings_of_other_items_are_refused(self) -> None:
        with pytest.raises(ValueError, match="of other items than those of task 'opened'"):
            Cascade(large(), small(), TextHandOff(), FixedTokens(1)).run(
                task(3), openings=write_openings(large(), task(4))
            )

    def test_openings_of_other_prompts_under_the_same_names_are_refused(self) -> None:
        asked = task(3)
        items = (*asked.items[:2], replace(asked.items[2], receiver=asked.items[0].receiver))
        with pytest.raises(ValueError, match="of other prompts than those of task 'opened'"):
            Cascade(large(), small(), TextHandOff(), FixedTokens(1)).run(
                replace(asked, items=items), openings=write_openings(large(), asked)
            )

    def test_openings_of_another_model_or_longer_than_a_reply_are_refused(self) -> None:
        openings = write_openings(large(), task(), longest=LIMIT + 2)
        assert any(len(row) > LIMIT for row in openings_of(openings))
        with pytest.raises(ValueError, match="an opening has 12 tokens, and a reply of task 'opened' 10 at most"):
            Cascade(large(), small(), TextHandOff(), FixedTokens(1)).run(task(), openings=openings)
        with pytest.raises(ValueError, match="the openings are by somebody, not by tiny-llama"):
            Cascade(large(), small(), TextHandOff(), FixedTokens(1)).run(
                task(), openings=replace(openings, made_by=openings.made_by | {"model": "somebody"})
            )

    @pytest.mark.parametrize("hand_off", HAND_OFFS)
    def test_an_empty_opening_of_one_item_is_its_whole_reply(self, hand_off: str) -> None:
        whole = write_openings(large(), task(2), layers=(EMBEDDING, 1), keep_cache=True)
        assert whole.parts is not None
        per_token = ("ids", "ends", "whole", "entropy", "margin", "states.-1", "states.1")
        empty = {name: whole.parts[0][name][:0] for name in per_token} | {"ended": torch.tensor(True)}
        openings = replace(whole, texts=("", whole.texts[1]), parts=(whole.parts[0] | empty, whole.parts[1]))
        found = Cascade(large(), small(), HAND_OFFS[hand_off], FixedTokens(3)).run(task(2), openings=openings)
        assert [(trial.n, trial.finished, trial.reply == "") for trial in found] == [(0, True, True), (3, False, False)]
        with recorded_passes() as passes:
            tokens = encode(large(), [task().items[0].receiver]).tokens
            large().forward(tokens, cache=large().new_cache(1), last_only=True)
        assert (found[0].flops, found[0].entropy) == (flops(passes), None)  # it has read its prompt

    def test_a_large_model_that_writes_nothing_is_refused(self) -> None:
        mute = tiny.build("llama")
        mute.__dict__["stop_ids"] = frozenset(range(64))
        with pytest.raises(ValueError, match="wrote an empty opening for every item"):
            sweep_cascade(mute, small(), task(), hand_offs={"text": TextHandOff()}, ns=(2,))

    def test_names_that_could_not_be_told_apart_are_refused(self) -> None:
        with pytest.raises(ValueError, match="no hand-off was given"):
            sweep_cascade(large(), small(), task(), hand_offs={})
        with pytest.raises(ValueError, match="name the hand-off otherwise"):
            sweep_cascade(large(), small(), task(), hand_offs={"none": TextHandOff()})
        with pytest.raises(ValueError, match="a stop is named '8'"):
            sweep_cascade(large(), small(), task(), hand_offs={"text": TextHandOff()}, stops={"8": SentenceEnd()})
        with pytest.raises(ValueError, match="there is no control 'placebo'"):
            sweep_cascade(large(), small(), task(), hand_offs={"text": TextHandOff()}, controls=("placebo",))
        with pytest.raises(ValueError, match="the control 'other' is called 'shuffled' now"):
            sweep_cascade(large(), small(), task(), hand_offs={"text": TextHandOff()}, controls=("other",))

    def test_a_pair_that_a_hand_off_refuses_is_refused_before_anything_runs(self) -> None:
        with recorded_passes() as passes, pytest.raises(ValueError, match="has no alignment"):
            sweep_cascade(large(), of_bytes(), task(), hand_offs={"soft": LatentHandOff(1)}, ns=(2,))
        assert passes == []

    def test_items_that_cannot_be_exchanged_are_refused_unless_nobody_asks(self) -> None:
        alike = replace(task(), items=tuple(replace(item, answers=("Peru",)) for item in task().items))
        with pytest.raises(ValueError, match="5 of 5 items share the answer"):
            sweep_cascade(large(), small(), alike, hand_offs={"text": TextHandOff()}, ns=(2,))
        found = sweep_cascade(large(), small(), alike, hand_offs={"text": TextHandOff()}, ns=(2,), controls=())
        assert {trial.condition for trial in found.trials} == {"silent", "large", "message"}
