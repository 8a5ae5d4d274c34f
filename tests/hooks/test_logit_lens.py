"""The logit lens against the model's own words at its last layer, and against a naive norm and unembedding below it."""

from collections.abc import Sequence

import pytest
import torch
from numerics import assert_same_bits
from tiny import ARCHITECTURES, CHOICES, EVERY_MODEL, model, transformers_model
from torch import Tensor
from toys import ASKED, toy

from latentcomm.hooks.capture import capture
from latentcomm.hooks.decode import next_token_logits
from latentcomm.hooks.logit_lens import LensHits, logit_lens
from latentcomm.models import Model, encode
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site
from latentcomm.tasks import draw_choices

TASK = toy()
TEXTS = [item.sender.removesuffix(f". {ASKED}") for item in TASK.items]  # prompts that end in different words
RIGHT = [item.choice for item in TASK.items]


def sayable(tiny: Model, top: Tensor) -> dict[int, str]:
    """The rows whose top token is a word or a mark, and that word: blanks and special tokens name no answer."""
    named = {row: tiny.tokenizer.convert_ids_to_tokens(token) for row, token in enumerate(top.tolist())}
    found = {row: name for row, name in named.items() if name and name.strip() and not name.startswith("<")}
    assert len(found) >= 2
    return found


def options(tiny: Model) -> list[tuple[str, ...]]:
    return draw_choices(TASK, tiny.first_token, seed=0)


def lens(
    tiny: Model,
    prompts: Prompts,
    layers: Sequence[int],
    *,
    answers: Sequence[Sequence[str]] | None = None,
    right: Sequence[str] | None = None,
    choices: Sequence[Sequence[str]] | None = None,
) -> LensHits:
    """The lens of the last token's state after these layers; what a test does not look at is any word."""
    word = [CHOICES[0]] * len(prompts)
    sites = [Site(layer) for layer in layers]
    at = capture(tiny, prompts, list(dict.fromkeys(sites)))
    return logit_lens(
        tiny,
        torch.stack([at.last(site) for site in sites], 1),
        answers=[[name] for name in word] if answers is None else answers,
        right=word if right is None else right,
        choices=[[name] for name in word] if choices is None else choices,
    )


def lens_top_token(tiny: Model, prompts: Prompts, layers: Sequence[int], answers: Sequence[Sequence[str]]) -> Tensor:
    return lens(tiny, prompts, layers, answers=answers).top_token


def lens_choice(
    tiny: Model, prompts: Prompts, layers: Sequence[int], right: Sequence[str], choices: Sequence[Sequence[str]]
) -> Tensor:
    return lens(tiny, prompts, layers, right=right, choices=choices).choice


def naive_lens(architecture: str, texts: Sequence[str]) -> Tensor:
    """[item layer vocabulary]: each layer's last state through the final norm and the head, by transformers alone."""
    raw, tiny = transformers_model(architecture), model(architecture)
    norm = {"gpt2": "transformer.ln_f", "neox": "gpt_neox.final_layer_norm"}.get(architecture, "model.norm")
    norm, head = raw.get_submodule(norm), raw.get_output_embeddings()
    rows = []
    for text in texts:
        with torch.no_grad():
            out = raw(torch.tensor([tiny.tokenizer(text).input_ids]), output_hidden_states=True, use_cache=False)
            below = [head(norm(state[0, -1])) for state in out.hidden_states[1:-1]]
        rows.append(torch.stack([*below, out.logits[0, -1]]))  # the last hidden state of transformers is normed already
    return torch.stack(rows)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
class TestAgainstNormAndUnembeddingByHand:
    def test_the_top_token_of_every_layer(self, architecture: str) -> None:
        tiny = model(architecture)
        top = naive_lens(architecture, TEXTS).argmax(-1)
        for layer in range(tiny.n_layers):
            said = sayable(tiny, top[:, layer])
            prompts = encode(tiny, [TEXTS[row] for row in said])
            assert lens_top_token(tiny, prompts, [layer], [[name] for name in said.values()]).all()
            others = [[choice for choice in CHOICES if choice != name] for name in said.values()]
            assert not lens_top_token(tiny, prompts, [layer], others).any()

    def test_the_choice_of_every_layer(self, architecture: str) -> None:
        tiny = model(architecture)
        ids = torch.tensor([[tiny.first_token(choice) for choice in row] for row in options(tiny)])
        logits = naive_lens(architecture, TEXTS).gather(-1, ids[:, None].expand(-1, tiny.n_layers, -1))
        expected = torch.tensor(
            [
                [row[int(pick)] == name for pick in picks]
                for row, picks, name in zip(options(tiny), logits.argmax(-1), RIGHT, strict=True)
            ]
        )
        found = lens_choice(tiny, encode(tiny, TEXTS), range(tiny.n_layers), RIGHT, options(tiny))
        assert_same_bits(found, expected)
        assert expected.any() and not expected.all()

    def test_layers_come_out_in_the_order_given(self, architecture: str) -> None:
        tiny = model(architecture)
        prompts = encode(tiny, TEXTS)
        forth = lens_choice(tiny, prompts, [0, 1, 2], RIGHT, options(tiny))
        assert_same_bits(lens_choice(tiny, prompts, [2, 0], RIGHT, options(tiny)), forth[:, [2, 0]])


@pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
def test_at_the_last_layer_the_lens_sees_the_models_own_next_token(architecture: str, backend: str) -> None:
    tiny = model(architecture, backend)
    prompts = encode(tiny, TEXTS)
    logits = next_token_logits(tiny, prompts)
    last, own = tiny.n_layers - 1, sayable(tiny, logits.argmax(-1))
    assert lens_top_token(tiny, prompts.select(list(own)), [last], [[name] for name in own.values()]).all()
    picks = [
        max(row, key=lambda choice: float(scores[tiny.first_token(choice)]))
        for row, scores in zip(options(tiny), logits, strict=True)
    ]
    assert lens_choice(tiny, prompts, [last], picks, options(tiny)).all()
    wrong = [next(choice for choice in CHOICES if choice != pick) for pick in picks]
    assert not lens_choice(tiny, prompts, [last], wrong, options(tiny)).any()
    assert len(set(picks)) > 1


def test_any_accepted_answer_counts_and_is_taken_literally() -> None:
    tiny = model("llama")
    row, token = next(iter(sayable(tiny, naive_lens("llama", TEXTS)[:, 1].argmax(-1)).items()))
    others = [name for name in CHOICES if name != token]
    prompts = encode(tiny, TEXTS[row : row + 1])

    def seen(*answers: str) -> bool:
        return bool(lens_top_token(tiny, prompts, [1], [answers]))

    assert seen(token) and seen(*others[:2], token) and not seen(*others)
    assert not seen(token.strip() if token.startswith(" ") else f" {token}")


def test_the_state_read_is_that_of_the_last_token_of_each_prompt() -> None:
    tiny = model("llama")
    together = lens_choice(tiny, encode(tiny, TEXTS), [1], RIGHT, options(tiny))
    alone = [
        lens_choice(tiny, encode(tiny, [text]), [1], [right], [row])
        for text, right, row in zip(TEXTS, RIGHT, options(tiny), strict=True)
    ]
    assert len({len(tiny.tokenizer(text).input_ids) for text in TEXTS}) > 1  # the batch is padded
    assert_same_bits(together, torch.cat(alone))


def test_a_choice_that_shares_its_first_token_is_not_above_the_other() -> None:
    tiny = model("llama")
    prompts = encode(tiny, TEXTS[:1])
    scores = next_token_logits(tiny, prompts)[0]
    best, *others = sorted(CHOICES, key=lambda choice: -float(scores[tiny.first_token(choice)]))

    def picked(right: str, *choices: str) -> bool:
        return bool(lens_choice(tiny, prompts, [tiny.n_layers - 1], [right], [choices]))

    assert picked(best, *others, best)
    for order in ((best, f"{best}."), (f"{best}.", best)):  # one token in two spellings
        assert not picked(best, *order, *others) and not picked(f"{best}.", *order, *others)
    shared = (others[0], f"{others[0]}.")
    assert picked(best, *shared, best)


def test_another_number_of_answers_than_prompts_is_refused() -> None:
    tiny = model("llama")
    prompts, message = encode(tiny, TEXTS), "1 answers or lists of choices for 8 items"
    with pytest.raises(ValueError, match=message):
        lens_top_token(tiny, prompts, [1], [["Greece"]])
    with pytest.raises(ValueError, match=message):
        lens_choice(tiny, prompts, [1], RIGHT[:1], options(tiny))
    with pytest.raises(ValueError, match=message):
        lens_choice(tiny, prompts, [1], RIGHT, options(tiny)[:1])
