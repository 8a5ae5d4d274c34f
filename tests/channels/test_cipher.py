"""CIPHER against a naive transcription that reads all again, against greedy text, and against the table's mean."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from numerics import assert_equal_to_rounding, assert_same_bits, forward_terms, same_bits
from tiny import BACKENDS, EOS_ID, EVERY_MODEL, VOCABULARY, build, ids, model, tokenizer, transformers_model
from torch import Tensor
from toys import toy

from latentcomm.channels import Cipher, CipherDebate, Message, Silent
from latentcomm.channels.cipher import SOFT, nearest_texts
from latentcomm.channels.soft_decoding import (
    check_vocabulary,
    decode_softly,
    nearest_tokens,
    table,
    with_slot,
)
from latentcomm.experiments.evaluation import evaluate
from latentcomm.hooks.decode import decode, next_token_logits
from latentcomm.hooks.receiver_input import ReceiverInput
from latentcomm.models import Model, encode, recorded_passes, wrap_model
from latentcomm.models.prompts import Prompts
from latentcomm.tasks import Task

TASK = toy()
STEPS = 4
INF = float("inf")


def naive_reply(
    raw: Any,
    entering: Tensor,
    readers: list[Tensor],
    *,
    temperature: float,
    threshold: float = -1.0,
    stops: bool = True,
) -> tuple[list[Tensor], list[int], list[float]]:
    """The formula, step by step, by transformers alone; every step reads all embeddings again."""
    own = raw.get_input_embeddings().weight.detach()
    own = own * getattr(raw.get_input_embeddings(), "embed_scale", torch.tensor(1.0)).to(own.dtype)
    said: list[list[Tensor]] = [[] for _ in readers]
    tokens, entropies = [], []
    for _ in range(STEPS):
        with torch.no_grad():
            logits = raw(inputs_embeds=entering[None], use_cache=False).logits[0, -1]
        plain = torch.softmax(logits, 0)
        entropy = float(-(plain * plain.log()).sum())
        if entropy > threshold:
            weights = torch.softmax(logits / temperature, 0)
        else:
            weights = torch.nn.functional.one_hot(logits.argmax(), len(logits)).double()
        mixed = sum(weight * row for weight, row in zip(weights, own, strict=True))
        assert isinstance(mixed, Tensor)
        cosines = [float(torch.nn.functional.cosine_similarity(mixed, row, dim=0)) for row in own]
        token = max(range(len(own)), key=lambda number: cosines[number])
        if stops and token == EOS_ID:
            break
        tokens.append(token)
        entropies.append(entropy)
        for place, rows in enumerate(readers):
            said[place].append(weights @ rows)
        entering = torch.cat([entering, mixed[None]])
    return [torch.stack(rows) if rows else own[:0] for rows in said], tokens, entropies


def embedded(raw: Any, text: str) -> Tensor:
    with torch.no_grad():
        return raw.get_input_embeddings()(torch.tensor([tokenizer()(text).input_ids]))[0]


def soft(message: Message, row: int) -> Tensor:
    assert message.parts is not None
    return message.parts[row][SOFT]


class TestTheSoftReply:
    @pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
    @pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "neox", "gemma2"])
    def test_is_the_formula_step_by_step(self, architecture: str, temperature: float) -> None:
        tiny, raw, other = model(architecture), transformers_model(architecture), model(architecture, seed=1)
        rows = ids(5, 2, 5, seed=3)
        found = decode_softly(
            tiny,
            ReceiverInput(Prompts.from_ids(rows)),
            max_new_tokens=STEPS,
            temperature=temperature,
            readers=(tiny, other),
        )
        for row, reply in zip(rows, found, strict=True):
            with torch.no_grad():
                entering = raw.get_input_embeddings()(row[None])[0]
            if architecture == "gemma2":  # given as embeddings, they are taken as they are
                assert_equal_to_rounding(entering[0], tiny.embedding_table[row[0]], terms=1)
            expected, tokens, entropies = naive_reply(
                raw, entering, [table(tiny), table(other)], temperature=temperature
            )
            assert reply.ids.tolist() == tokens
            assert reply.entropy.tolist() == pytest.approx(entropies, abs=1e-9)
            for vectors, theirs in zip(reply.vectors, expected, strict=True):
                terms, scale = forward_terms(tiny, n_forward=STEPS) + len(table(tiny)), float(table(tiny).abs().max())
                assert_equal_to_rounding(vectors, theirs, terms=terms, scale=scale)

    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    @pytest.mark.parametrize(
        "options", [{"temperature": 0}, {"temperature": 1e-6}, {"temperature": 3.0, "entropy_threshold": INF}], ids=str
    )
    def test_of_no_temperature_or_no_entropy_enough_is_greedy_text(
        self, architecture: str, backend: str, options: dict[str, float]
    ) -> None:
        tiny, prompts = model(architecture, backend), Prompts.from_ids(ids(6, 2, 6, seed=2))
        greedy = decode(tiny, prompts, max_new_tokens=6)
        found = decode_softly(tiny, ReceiverInput(prompts), max_new_tokens=6, readers=(tiny,), **options)
        assert [reply.ids.tolist() for reply in found] == greedy.ids
        for reply in found:
            assert torch.allclose(reply.vectors[0], table(tiny)[reply.ids], rtol=0, atol=1e-9)
        warm = decode_softly(tiny, ReceiverInput(prompts), max_new_tokens=6, temperature=3.0, readers=(tiny,))
        assert not torch.allclose(warm[0].vectors[0][0], found[0].vectors[0][0], atol=1e-3)

    @pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
    def test_of_endless_temperature_is_the_mean_of_the_table(self, architecture: str) -> None:
        tiny, other = model(architecture), model(architecture, seed=1)
        prompts = ReceiverInput(Prompts.from_ids(ids(5, seed=2)))
        for temperature in (INF, 1e12):
            (found,) = decode_softly(tiny, prompts, max_new_tokens=3, temperature=temperature, readers=(tiny, other))
            assert len(found.ids) == 3
            for vectors, reader in zip(found.vectors, (tiny, other), strict=True):
                assert torch.allclose(vectors, table(reader).mean(0).expand(3, -1), rtol=0, atol=1e-9)

    @pytest.mark.parametrize("threshold", [2.0, 2.5, 3.0])
    def test_is_soft_only_where_the_entropy_exceeds_the_threshold(self, threshold: float) -> None:
        tiny, raw = model("llama"), transformers_model("llama")
        kinds = set()
        for row in ids(5, 3, 4, 6, seed=4):
            with torch.no_grad():
                entering = raw.get_input_embeddings()(row[None])[0]
            (found,) = decode_softly(
                tiny,
                ReceiverInput(Prompts.from_ids([row])),
                max_new_tokens=STEPS,
                temperature=1.5,
                entropy_threshold=threshold,
                readers=(tiny,),
            )
            expected, tokens, _ = naive_reply(raw, entering, [table(tiny)], temperature=1.5, threshold=threshold)
            assert found.ids.tolist() == tokens and torch.allclose(found.vectors[0], expected[0], rtol=0, atol=1e-9)
            hard = [
                torch.allclose(v, table(tiny)[t], atol=1e-12) for v, t in zip(found.vectors[0], tokens, strict=True)
            ]
            assert hard == [float(entropy) <= threshold for entropy in found.entropy]
            kinds |= set(hard)
        assert kinds == {True, False} or threshold != 2.5

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_rows_together_are_each_alone_and_end_each_for_itself(self, backend: str) -> None:
        tiny = build("llama", backend)
        prompts = Prompts.from_ids(ids(6, 2, 6, 6, seed=8))
        free = decode_softly(tiny, ReceiverInput(prompts), max_new_tokens=5, temperature=1.0, readers=(tiny,))
        tiny.__dict__["stop_ids"] = frozenset([int(free[0].ids[2]), int(free[3].ids[0])])
        found = decode_softly(tiny, ReceiverInput(prompts), max_new_tokens=5, temperature=1.0, readers=(tiny,))
        for row, reply in enumerate(found):
            said = free[row].ids.tolist()
            ends = [place for place, token in enumerate(said) if token in tiny.stop_ids]
            assert reply.ids.tolist() == said[: min(ends, default=5)]
            (alone,) = decode_softly(
                tiny, ReceiverInput(prompts.select([row])), max_new_tokens=5, temperature=1.0, readers=(tiny,)
            )
            assert torch.allclose(alone.vectors[0], reply.vectors[0], rtol=0, atol=1e-9)
        assert len(found[3].ids) == 0 and len(found[0].ids) <= 2

    def test_it_runs_one_token_a_pass_with_a_cache_until_all_rows_have_ended(self) -> None:
        tiny = build("llama")
        prompts = ReceiverInput(Prompts.from_ids(ids(6, 6, 3, seed=8)))
        tiny.__dict__["stop_ids"] = frozenset()
        with recorded_passes() as passes:
            decode_softly(tiny, prompts, max_new_tokens=3, temperature=1.0)
        assert [(p.rows, p.n_new, p.n_past) for p in passes if p.n_new] == [
            (2, 6, 0), (1, 3, 0), (2, 1, 6), (1, 1, 3), (2, 1, 7), (1, 1, 4)
        ]  # fmt: skip
        tiny.__dict__["stop_ids"] = frozenset(range(64))
        with recorded_passes() as passes:
            found = decode_softly(tiny, prompts, max_new_tokens=3, temperature=1.0)
        assert [(p.rows, p.n_new) for p in passes if p.n_new] == [(2, 6), (1, 3)]
        assert all(len(reply.ids) == 0 for reply in found)

    def test_options_out_of_range(self) -> None:
        tiny, prompts = model("llama"), ReceiverInput(Prompts.from_ids(ids(6)))
        for options in ({"max_new_tokens": 0, "temperature": 1}, {"max_new_tokens": 1, "temperature": -0.1}):
            with pytest.raises(ValueError, match="must be at least 1 and temperature"):
                decode_softly(tiny, prompts, **options)
        with pytest.raises(ValueError, match="entropy_threshold is nan"):
            decode_softly(tiny, prompts, max_new_tokens=1, temperature=1, entropy_threshold=float("nan"))
        with pytest.raises(ValueError, match="6 prompt tokens and 36 new ones exceed the 40 of tiny-llama"):
            decode_softly(tiny, prompts, max_new_tokens=36, temperature=1)

    def test_a_processed_model_is_refused(self) -> None:
        processed = build("gpt2")
        processed.hooked.enable_compatibility_mode(disable_warnings=True)
        with pytest.raises(ValueError, match=r"tiny-gpt2 has processed weights .* which change its embedding table"):
            Cipher(max_tokens=2).send(processed, TASK, receiver=processed)


class TestNearestTokens:
    def test_are_those_of_the_largest_cosine_and_not_of_the_largest_product(self) -> None:
        tiny = build("llama")
        with torch.no_grad():
            tiny.hooked.W_E[9] *= 50
            tiny.hooked.W_E[10] = 0
        rows = tiny.hooked.W_E.detach()
        vectors = rows[[7, 9, 30]] * torch.tensor([[3.0], [0.1], [1.0]])
        assert nearest_tokens(tiny, vectors.double()).tolist() == [7, 9, 30]
        assert (rows[7] @ rows.T).argmax() != 7  # the product prefers the long row


class TestTheSlot:
    @pytest.mark.parametrize("adds_bos", [False, True])
    @pytest.mark.parametrize("template", ["raw", "chat"])
    def test_holds_the_vectors_inside_the_template_before_the_text(self, template: Any, adds_bos: bool) -> None:
        raw = transformers_model("llama")
        tiny = wrap_model(raw, tokenizer(adds_bos=adds_bos), name="tiny")
        texts = ["Alice is in the country of", "The country", "Alice"]
        says = [torch.tensor([VOCABULARY[" Greece"], VOCABULARY[" note"]]), torch.tensor([9]), torch.tensor([]).long()]
        given = with_slot(tiny, texts, [table(tiny)[ids] for ids in says], template=template)
        words = tokenizer()
        for row, (text, said) in enumerate(zip(texts, says, strict=True)):
            told = [*words("\n").input_ids, *words(text).input_ids] if len(said) else words(text).input_ids
            whole = [*said.tolist(), *told]
            if template == "chat":
                whole = [*words("<user>").input_ids, *whole, *words("<end><assistant>").input_ids]
            elif adds_bos:
                whole = [VOCABULARY["<bos>"], *whole]
            found = next_token_logits(tiny, given.select([row]))[0]
            assert torch.allclose(found, tiny.forward(torch.tensor([whole]))[0, -1], rtol=0, atol=1e-9)
        assert given.prompts.ids(2).tolist() == encode(tiny, ["Alice"], template=template).ids(0).tolist()

    def test_a_last_token_that_is_the_padding_token_is_read(self) -> None:
        tiny = model("llama")
        given = with_slot(tiny, ["Alice is of", "Alice is"], [table(tiny)[:1], table(tiny)[:1]], template="raw")
        assert given.prompts.lengths.tolist() == [5, 4]

    def test_refuses_what_encode_refuses(self) -> None:
        tiny, vector = model("llama"), torch.ones(1, 32, dtype=torch.float64)
        no_chat = wrap_model(transformers_model("llama"), tokenizer(chat=False), name="tiny")
        with pytest.raises(ValueError, match="has no chat template; use template='raw'"):
            with_slot(no_chat, ["Alice"], [vector], template="chat")
        with pytest.raises(ValueError, match="a prompt with its message has 42 tokens and tiny-llama reads 40 at most"):
            with_slot(tiny, ["Alice"], [vector.expand(40, -1)], template="raw")
        deaf = tokenizer()
        deaf.chat_template = "{% for message in messages %}<user>{% endfor %}"
        with pytest.raises(ValueError, match="drops or changes the user's text"):
            with_slot(wrap_model(transformers_model("llama"), deaf, name="t"), ["Alice"], [vector], template="chat")


class TestTheChannel:
    @pytest.mark.parametrize("template", ["raw", "chat"])
    @pytest.mark.parametrize("options", [{"temperature": 0}, {"entropy_threshold": INF}], ids=str)
    def test_of_no_temperature_says_what_greedy_text_says(self, options: dict[str, float], template: Any) -> None:
        sender, receiver, task = model("llama"), model("llama", seed=1), replace(TASK, template=template)
        channel = Cipher(max_tokens=3, allow_empty=True, **options)
        message = channel.send(sender, task, receiver=receiver)
        greedy = decode(sender, encode(sender, [i.sender for i in task.items], template=template), max_new_tokens=3)
        found = next_token_logits(receiver, channel.receive(receiver, task, message))
        assert nearest_texts(receiver, message) == greedy.texts
        for row, item in enumerate(task.items):
            said, told = greedy.ids[row], tokenizer()(f"\n{item.receiver}").input_ids
            whole = [*said, *told]
            if template == "chat":
                whole = [VOCABULARY["<user>"], *whole, VOCABULARY["<end>"], VOCABULARY["<assistant>"]]
            expected = receiver.forward(torch.tensor([whole]))[0, -1]
            assert torch.allclose(found[row], expected, rtol=0, atol=1e-9)

    def test_a_message_is_in_the_receivers_table(self) -> None:
        sender, receiver = model("llama", d_model=16), model("llama", seed=1)
        channel = Cipher(max_tokens=2, temperature=1.0, allow_empty=True)
        message = channel.send(sender, TASK, receiver=receiver)
        logits = next_token_logits(sender, encode(sender, [item.sender for item in TASK.items]))
        for row in range(8):
            if len(soft(message, row)):
                expected = torch.softmax(logits[row], 0) @ receiver.hooked.W_E
                assert torch.allclose(soft(message, row)[0], expected, rtol=0, atol=1e-9)
        assert message.meant_for == receiver.name
        assert message.nbytes() == [len(soft(message, row)) * 32 * 8 for row in range(8)]
        with pytest.raises(ValueError, match="is meant for tiny-llama and another cannot read it"):
            channel.receive(wrap_model(transformers_model("llama"), tokenizer(), name="another"), TASK, message)

    @pytest.mark.parametrize("tied", ["llama", "gpt2"])
    def test_reads_the_input_table_whether_or_not_the_output_is_tied_to_it(self, tied: str) -> None:
        tiny, raw = model(tied), transformers_model(tied)
        weights = raw.get_input_embeddings().weight, raw.get_output_embeddings().weight
        assert same_bits(*weights) == (tied == "gpt2")
        assert_same_bits(table(tiny), weights[0])

    def test_a_request_comes_after_the_senders_text(self) -> None:
        tiny = model("llama")
        channel = Cipher(max_tokens=1, request=" The", allow_empty=True)
        found = channel.send(tiny, TASK)
        asked = replace(TASK, items=tuple(replace(i, sender=i.sender + " The") for i in TASK.items))
        expected = replace(channel, request="").send(tiny, asked)
        assert all(same_bits(soft(found, row), soft(expected, row)) for row in range(8))

    def test_two_vocabularies_are_refused_even_of_one_size(self) -> None:
        sender, receiver = model("llama"), model("llama", seed=1)
        swapped = tokenizer()
        state = swapped.backend_tokenizer.to_str().replace(" Greece", " Greese")
        from tokenizers import Tokenizer

        swapped._tokenizer = Tokenizer.from_str(state)
        other = wrap_model(transformers_model("llama", seed=1), swapped, name="other")
        with pytest.raises(
            ValueError,
            match=r"tiny-llama and other have different vocabularies \(52 and 52 tokens; ' Gree.e' is not token",
        ):
            Cipher().send(sender, TASK, receiver=other)
        check_vocabulary(sender, receiver)
        check_vocabulary(sender, sender)
        short = wrap_model(transformers_model("llama", n_vocabulary=40), tokenizer(), name="short")
        with pytest.raises(ValueError, match="short has 40 embeddings for 52 ids"):
            check_vocabulary(sender, short)

    def test_tables_padded_to_different_sizes_share_their_vocabulary(self) -> None:
        sender, receiver = model("llama"), model("llama", seed=1, n_vocabulary=56)
        for one, other in ((sender, receiver), (receiver, sender)):
            message = Cipher(max_tokens=1, temperature=INF, allow_empty=True).send(one, TASK, receiver=other)
            spoken = next(soft(message, row) for row in range(8) if len(soft(message, row)))
            assert torch.allclose(spoken[0], table(other)[:56].mean(0), rtol=0, atol=1e-9)

    def test_a_sender_that_stops_at_once_is_refused_or_silent(self) -> None:
        mute, receiver = build("llama"), model("llama", seed=1)
        mute.__dict__["stop_ids"] = frozenset(range(64))
        expected = (
            "tiny-llama sent an empty message for item 'item-0' (8 of 8 messages of the channel cipher are empty)"
        )
        with pytest.raises(ValueError, match=re.escape(expected)):
            Cipher(max_tokens=3).send(mute, TASK, receiver=receiver)
        channel = Cipher(max_tokens=3, allow_empty=True)
        message = channel.send(mute, TASK, receiver=receiver)
        assert message.nbytes() == [0] * 8
        found = next_token_logits(receiver, channel.receive(receiver, TASK, message))
        silent = Silent().receive(receiver, TASK, Message(None, "nothing"))
        assert_equal_to_rounding(found, next_token_logits(receiver, silent), terms=forward_terms(receiver))

    def test_options_out_of_range(self) -> None:
        with pytest.raises(ValueError, match="a temperature of the channel cipher is -1; give at least 0"):
            Cipher(temperature=-1)
        with pytest.raises(ValueError, match=r"entropy_threshold of the channel cipher is -0\.5; give nats"):
            Cipher(entropy_threshold=-0.5)
        with pytest.raises(ValueError, match="max_tokens of the channel cipher is 0"):
            Cipher(max_tokens=0)
        with pytest.raises(ValueError, match="the channel cipher needs a message of soft tokens and got by hand"):
            Cipher().receive(model("llama"), TASK, Message(None, "by hand", texts=("a",) * 8))

    def test_on_gemma_the_receiver_gets_what_its_tokens_would_put_there(self) -> None:
        tiny = model("gemma2")
        channel = Cipher(max_tokens=3, temperature=0, allow_empty=True)
        message = channel.send(tiny, TASK)
        greedy = decode(tiny, encode(tiny, [item.sender for item in TASK.items]), max_new_tokens=3)
        found = next_token_logits(tiny, channel.receive(tiny, TASK, message))
        for row, item in enumerate(TASK.items):
            whole = [
                *greedy.ids[row],
                *tokenizer()(f"\n{item.receiver}" if greedy.ids[row] else item.receiver).input_ids,
            ]
            assert_equal_to_rounding(found[row], tiny.forward(torch.tensor([whole]))[0, -1], terms=forward_terms(tiny))


class TestTheSoftDebate:
    CHANNEL = CipherDebate(temperatures=(0.5, 0.25), rounds=2, max_tokens=2, allow_empty=True)

    def by_hand(self, task: Task, row: int, sender: Model, receiver: Model) -> dict[str, Tensor]:
        """Two rounds of two agents, one item, each reply by itself: others' embeddings first, own second."""
        item, gap = task.items[row], tokenizer()("\n").input_ids

        def say(who: Model, text: str, temperature: float, heard: list[Tensor]) -> tuple[Tensor, ...]:
            pieces = [piece for said in heard if len(said) for piece in (table(who)[gap], said)][1:]
            joined = torch.cat(pieces) if pieces else table(who)[:0]
            given = with_slot(who, [text], [joined], template=task.template)
            (reply,) = decode_softly(who, given, max_new_tokens=2, temperature=temperature, readers=(sender, receiver))
            return reply.vectors

        a1, b1 = say(sender, item.sender, 0.5, []), say(receiver, item.receiver, 0.25, [])
        a2 = say(sender, item.sender, 0.5, [b1[0], a1[0]])
        return {"round 0 agent 0": a1[1], "round 1 agent 0": a2[1], "own": b1[1]}

    def test_two_agents_read_the_other_first_and_themselves_second(self) -> None:
        sender, receiver = model("llama"), model("llama", seed=1)
        message = self.CHANNEL.send(sender, TASK, receiver=receiver)
        assert message.parts is not None and message.texts is None
        given = self.CHANNEL.receive(receiver, TASK, message)
        for row in (0, 3, 4):
            expected = self.by_hand(TASK, row, sender, receiver)
            assert set(message.parts[row]) == set(expected)
            for name, vectors in expected.items():
                # rows of unequal lengths go on together; two rounds of two tokens, and the mixture of the table
                terms = forward_terms(sender, n_forward=4) + len(table(sender))
                assert_equal_to_rounding(message.parts[row][name], vectors, terms=terms)
            heard = [expected["round 0 agent 0"], expected["own"]]
            gap = table(receiver)[tokenizer()("\n").input_ids]
            pieces = [piece for said in heard if len(said) for piece in (gap, said)][1:]
            read = with_slot(receiver, [TASK.items[row].receiver], [torch.cat(pieces)], template="raw")
            found, theirs = next_token_logits(receiver, given.select([row])), next_token_logits(receiver, read)
            assert torch.allclose(found, theirs, rtol=0, atol=1e-9)

    def test_the_coldest_decides_and_the_receiver_where_it_is_among_them(self) -> None:
        for temperatures, coldest in (((0.5, 0.25), 1), ((0.25, 0.5), 0), ((0.3, 0.3), 1), ((0.4, 0.1, 0.2), 1)):
            assert CipherDebate(temperatures=temperatures).coldest == coldest
        sender, receiver = model("llama"), model("llama", seed=1)
        cold = replace(self.CHANNEL, temperatures=(0.25, 0.5))
        message = cold.send(receiver, TASK, receiver=receiver)  # of one table, so that what it said is in the message
        assert message.texts is not None and message.parts is not None
        last = [part["round 1 agent 0"] for part in message.parts]
        assert list(message.texts) == [receiver.decode(nearest_tokens(receiver, rows).tolist()) for rows in last]
        assert cold.decide(TASK, message, ["x"] * 8) == list(message.texts)
        found = evaluate(cold, receiver, receiver, TASK, controls=(), reply_tokens=2)
        assert [one.reply for one in found] == list(message.texts)
        warm = self.CHANNEL.send(sender, TASK, receiver=receiver)
        assert self.CHANNEL.decide(TASK, warm, ["x"] * 8) == ["x"] * 8

    def test_what_cannot_be_is_refused(self) -> None:
        with pytest.raises(ValueError, match="has 1 agents and 3 rounds; a debate needs 2 or more of both"):
            CipherDebate(temperatures=(0.5,))
        with pytest.raises(ValueError, match="has 2 agents and 1 rounds"):
            CipherDebate(rounds=1)
        with pytest.raises(ValueError, match="is a debate: give send the receiver too"):
            self.CHANNEL.send(model("llama"), TASK)
        mute = build("llama")
        mute.__dict__["stop_ids"] = frozenset(range(64))
        with pytest.raises(ValueError, match="sent an empty message for item 'item-0'"):
            replace(self.CHANNEL, allow_empty=False).send(mute, TASK, receiver=model("llama", seed=1))
