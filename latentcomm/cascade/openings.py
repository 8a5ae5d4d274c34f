"""What a large model writes of every item, once: tokens, signals along them, and states or keys and values if asked."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from latentcomm.channels.base import receiver_prompts
from latentcomm.channels.kv import swapped
from latentcomm.decoding import EMBEDDED, ReceiverInput, Run, read_prompts, runs
from latentcomm.files import digest, without_folder, written_whole
from latentcomm.models import Hook, Model
from latentcomm.progress import track
from latentcomm.sites import Site
from latentcomm.tasks.base import Task

ITEMS_AT_ONCE = 32
"""Items that are written together and kept in one file: what a stopped run loses at most."""
EMBEDDING = -1
"""Where layers are named: what stands before the first block, a row of the embedding table."""
FILE_KIND = "latentcomm.Openings/1"
_HELD_BACK = "\N{REPLACEMENT CHARACTER}"
_NONE = torch.zeros(0, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Opening:
    """What the large model wrote of one item, and what was seen as it did.

    Attributes:
        ids: the tokens, in the large model's vocabulary.
        ended: whether it then ended by itself; else it was cut.
        n_prompt: tokens that it read before.
        entropy: of the distribution that each token was drawn from, in nats.
        margin: the probability of each token, the likeliest, less that of the second.
        pieces: what each token adds to the text; a character of several tokens comes with its last one.
        whole: whether each token ends where a character does.
        written: the whole as the tokenizer gives it, with whatever its last character lacks.
        states: of some layers, the residual stream after the block at each token.
        cache: keys and values `[layer head pos d_head]` of the prompt and all tokens but the last, or None.
    """

    ids: tuple[int, ...]
    ended: bool
    n_prompt: int
    entropy: Float[Tensor, " n"]
    margin: Float[Tensor, " n"]
    pieces: tuple[str, ...]
    whole: tuple[bool, ...]
    written: str
    states: dict[int, Float[Tensor, "_ d_model"]] = field(default_factory=dict)
    cache: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of_signals(
        cls,
        *,
        entropy: Float[Tensor, " _"] | None = None,
        margin: Float[Tensor, " _"] | None = None,
        pieces: Sequence[str] | None = None,
    ) -> "Opening":
        """An opening of signals alone, to ask a stop about; what is not given is nan, or empty text.

        Raises:
            ValueError: nothing given, or signals of unequal lengths.
        """
        lengths = {len(each) for each in (entropy, margin, pieces) if each is not None}
        if len(lengths) != 1:
            raise ValueError(f"the signals have the lengths {sorted(lengths)}; give some, all of one length")
        n = lengths.pop()
        nothing = torch.full((n,), float("nan"), dtype=torch.float64)
        texts = tuple(pieces if pieces is not None else [""] * n)
        return cls(
            (0,) * n, False, 1, nothing if entropy is None else entropy, nothing if margin is None else margin,
            texts, (True,) * n, "".join(texts),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.ids)

    def text(self, n: int) -> str:
        """The text of the first n tokens, or of all where there are fewer; a character that is not whole yet is held
        back.
        """
        return "".join(self.pieces[:n])

    def past(self, n: int) -> tuple[Tensor, Tensor]:
        """Keys and values `[layer head pos d_head]` of the prompt and the first n tokens without the last of them.

        Raises:
            ValueError: they were not kept.
        """
        if self.cache is None:
            raise ValueError("keys and values of the openings were not kept; write them with keep_cache=True")
        end = self.n_prompt + max(min(n, len(self)) - 1, 0)
        return self.cache[0][:, :, :end], self.cache[1][:, :, :end]

    def cut(self, n: int) -> "Opening":
        """The first n tokens alone, as they would have been seen by then; all of it where there are not more."""
        if n >= len(self):
            return self
        return replace(
            self,
            ids=self.ids[:n],
            ended=False,
            entropy=self.entropy[:n],
            margin=self.margin[:n],
            pieces=self.pieces[:n],
            whole=self.whole[:n],
            written=self.text(n),
            states={layer: states[:n] for layer, states in self.states.items()},
            cache=None if self.cache is None else self.past(n),
        )


@dataclass(frozen=True, eq=False)
class Openings:
    """What a large model wrote of the items of a task.

    Attributes:
        items: the ids of the items.
        rows: the opening of each.
        longest: tokens after which an opening was cut.
        large: the name of the model.
        vocabulary: a digest of the large model's vocabulary: whether ids mean the same to another model.
        layers: the layers whose states are there.
    """

    items: tuple[str, ...]
    rows: tuple[Opening, ...]
    longest: int
    large: str
    vocabulary: str
    layers: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def text(self, row: int, n: int) -> str:
        """The text of the first n tokens of an opening."""
        return self.rows[row].text(n)

    def select(self, rows: Sequence[int]) -> "Openings":
        """Those of some of the items, in the given order."""
        return replace(self, items=tuple(self.items[row] for row in rows), rows=tuple(self.rows[row] for row in rows))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write them as one safetensors file, whole or not at all."""
        tensors: dict[str, Tensor] = {}
        records = []
        for number, row in enumerate(self.rows):
            records.append(
                {"ids": row.ids, "ended": row.ended, "n_prompt": row.n_prompt, "pieces": row.pieces, "whole": row.whole,
                 "written": row.written}
            )  # fmt: skip
            tensors |= {f"{number}.entropy": row.entropy, f"{number}.margin": row.margin}
            tensors |= {f"{number}.states.{layer}": states for layer, states in row.states.items()}
            if row.cache is not None:
                tensors |= {f"{number}.keys": row.cache[0], f"{number}.values": row.cache[1]}
        facts = {name: getattr(self, name) for name in ("items", "longest", "large", "vocabulary", "layers")}
        metadata = {"kind": FILE_KIND, "facts": json.dumps(facts), "rows": json.dumps(records)}
        with written_whole(Path(path)) as draft:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, draft, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Openings":
        """The openings that `save` wrote.

        Raises:
            ValueError: the file holds none.
        """
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            if told.get("kind") != FILE_KIND:
                raise ValueError(f"{path} is marked {told.get('kind')}, not {FILE_KIND}; give a file of Openings.save")
            facts, records = json.loads(told["facts"]), json.loads(told["rows"])
            names = set(file.keys())
            rows = []
            for number, record in enumerate(records):
                states = {layer: file.get_tensor(f"{number}.states.{layer}") for layer in facts["layers"]}
                cache = None
                if f"{number}.keys" in names:
                    cache = (file.get_tensor(f"{number}.keys"), file.get_tensor(f"{number}.values"))
                signals = [file.get_tensor(f"{number}.{name}") for name in ("entropy", "margin")]
                rows.append(
                    Opening(
                        tuple(record["ids"]),
                        record["ended"],
                        record["n_prompt"],
                        signals[0],
                        signals[1],
                        tuple(record["pieces"]),
                        tuple(record["whole"]),
                        record["written"],
                        states,
                        cache,
                    )
                )
        return cls(
            tuple(facts["items"]), tuple(rows), facts["longest"], facts["large"], facts["vocabulary"],
            tuple(facts["layers"]),
        )  # fmt: skip


def write_openings(
    large: Model,
    task: Task,
    *,
    longest: int | None = None,
    layers: Sequence[int] = (),
    keep_cache: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Openings:
    """What the large model writes of every item, greedily, to `longest` tokens (`task.reply_tokens` by default).

    It reads what the small one will read, `item.receiver`, under the task's template, and writes once for every n and
    every stop. With `layers` the residual stream after these blocks (-1: the embedding) is kept at every token, which
    takes a last pass of these layers that reads the last token; with `keep_cache` the keys and values of all layers.
    They lie on the CPU: 4 d_model bytes a token and layer, and 8 n_layers G d_head bytes a token of prompt and opening,
    G the key-value heads, in float32. With `checkpoint` what is written is kept there, 32 items a file, and not written
    again.

    Raises:
        ValueError: `longest` below 1, a layer that the model does not have, or prompts that do not fit it.
    """
    longest = task.reply_tokens if longest is None else longest
    if longest < 1:
        raise ValueError(f"longest is {longest}; let the large model write at least 1 token")
    wanted = tuple(sorted(set(layers)))
    for layer in wanted:
        if layer != EMBEDDING:
            large.check_site(Site(layer))
    prompts = receiver_prompts(large, task)
    if (most := int(prompts.lengths.max())) + longest > large.n_ctx:
        raise ValueError(
            f"{most} prompt tokens and an opening of {longest} exceed the {large.n_ctx} of {large.name}; ask for a "
            "shorter one"
        )
    names, known = tuple(item.id for item in task.items), vocabulary_of(large)
    folder = None
    if checkpoint is not None:
        asked = [(item.id, item.receiver) for item in task.items]
        if large.has_hooks:
            raise ValueError(f"openings of {large.name} with hooks attached cannot be kept: they are in no name")
        key = digest(large, asked, task.template, longest, wanted, keep_cache)
        folder = Path(checkpoint) / f"openings-{key[:16]}"
    rows: list[Opening] = []
    parts = list(_chunks(len(names)))
    for part in track(parts, f"openings by {without_folder(large.name)}", total=len(parts), shown=progress):
        file = None if folder is None else folder / f"{part.start:05d}.safetensors"
        if file is not None and file.exists():
            rows += Openings.load(file).rows
            continue
        done = _write(large, ReceiverInput(prompts.select(part)), longest, wanted, keep_cache)
        if file is not None:
            Openings(names[part.start : part.stop], tuple(done), longest, large.name, known, wanted).save(file)
        rows += done
    return Openings(names, tuple(rows), longest, large.name, known, wanted)


def vocabulary_of(model: Model) -> str:
    """A digest of the tokens of a model's vocabulary and their ids."""
    return digest(sorted(model.require_tokenizer().get_vocab().items(), key=lambda entry: (entry[1], entry[0])))


def _chunks(n: int) -> Iterator[range]:
    return (range(first, min(first + ITEMS_AT_ONCE, n)) for first in range(0, n, ITEMS_AT_ONCE))


class _EnoughError(Exception):
    """Raised by a hook to end the pass that reads the last token, whose logits nobody asked for."""


@dataclass(frozen=True, eq=False)
class _Step:
    """What was seen as the rows of a batch were each given one more token."""

    tokens: list[int]
    entropy: Float[Tensor, " batch"]
    margin: Float[Tensor, " batch"]
    states: dict[int, Tensor]


def _write(
    large: Model, given: ReceiverInput, longest: int, layers: tuple[int, ...], keep_cache: bool
) -> list[Opening]:
    rows: list[Opening | None] = [None] * len(given.prompts)
    for run in runs(large, given, longest, read_prompts):
        steps, lengths = _steps(large, run, longest, layers)
        kept = large.cache_layers(run.cache) if keep_cache else None
        for place, row in enumerate(run.rows):
            n, n_prompt = lengths[place], int(given.prompts.lengths[row])
            ids = tuple(step.tokens[place] for step in steps[:n])
            cache = None
            if kept is not None:
                real = _real_positions(run, place, n_prompt + max(n - 1, 0))
                cache = (_of_row(large, [keys for keys, _ in kept], place, real),
                         _of_row(large, [values for _, values in kept], place, real))  # fmt: skip
            rows[row] = Opening(
                ids,
                n < longest,
                n_prompt,
                torch.stack([step.entropy[place] for step in steps[:n]]) if n else _NONE.clone(),
                torch.stack([step.margin[place] for step in steps[:n]]) if n else _NONE.clone(),
                *pieces_of(large, ids),
                large.decode(ids),
                {
                    layer: torch.stack([step.states[layer][place] for step in steps[:n]])
                    if n
                    else torch.zeros(0, large.d_model, dtype=large.dtype)
                    for layer in layers
                },
                cache,
            )
    return [row for row in rows if row is not None]


def _steps(large: Model, run: Run, longest: int, layers: tuple[int, ...]) -> tuple[list[_Step], list[int]]:
    """The steps of rows that go on together, and how many tokens each row has before it ended or was cut."""
    steps: list[_Step] = []
    lengths, live, logits = [0] * len(run.rows), [True] * len(run.rows), run.logits
    for number in range(longest):
        entropy, margin = _signals(logits)
        tokens = logits.argmax(-1)
        for row, token in enumerate(tokens.tolist()):
            live[row] = live[row] and token not in large.stop_ids
            lengths[row] += live[row]
        if not any(live):
            break
        states: dict[int, Tensor] = {}
        steps.append(_Step(tokens.tolist(), entropy, margin, states))
        if number < longest - 1:
            logits = run.step(tokens, _keepers(layers, states))
        elif layers:
            _read_last(large, run, tokens, layers, states)
    return steps, lengths


def _signals(logits: Float[Tensor, "batch d_vocab"]) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Entropy in nats, and the likeliest token's probability less the second's."""
    log_p = logits.double().log_softmax(-1)
    p = log_p.exp()
    best = p.topk(2, dim=-1).values
    return torch.special.entr(p).sum(-1).cpu(), (best[:, 0] - best[:, 1]).cpu()


def _keepers(layers: Sequence[int], states: dict[int, Tensor]) -> list[Hook]:
    """Hooks that write down the state after each layer at the one token that is read."""

    def keeper(layer: int) -> Hook:
        def keep(value: Tensor, hook: Any) -> None:
            states[layer] = value[:, -1].detach().cpu().clone()

        return _hook_name(layer), keep

    return [keeper(layer) for layer in layers]


def _hook_name(layer: int) -> str:
    return EMBEDDED if layer == EMBEDDING else Site(layer).hook_name


def _read_last(large: Model, run: Run, tokens: Tensor, layers: tuple[int, ...], states: dict[int, Tensor]) -> None:
    """The pass that reads the last token for its states, and ends once it has them."""

    def stop(_state: Tensor, hook: Any) -> None:
        raise _EnoughError

    hooks = [*_keepers(layers, states), (_hook_name(layers[-1]), stop), *run.hooks]
    with contextlib.suppress(_EnoughError):
        large.forward(
            tokens[:, None], hooks=hooks, cache=run.cache, past_mask=run.past_mask, n_layers_run=layers[-1] + 1
        )


def _real_positions(run: Run, place: int, n: int) -> Tensor:
    """The first n positions of the cache that a row really has."""
    return torch.arange(n) if run.past_mask is None else run.past_mask[place].nonzero()[:n, 0]


def _of_row(large: Model, layers: Sequence[Tensor], place: int, positions: Tensor) -> Float[Tensor, "layer head pos _"]:
    """One row's keys or values at these positions, layers first, on the CPU."""
    own = [swapped(large, each[place : place + 1])[0][:, positions.to(each.device)] for each in layers]
    return torch.stack(own).detach().cpu()


def pieces_of(model: Model, ids: Sequence[int]) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    """What each token adds to the text of those before it, and whether it ends where a character does.

    A character of several tokens comes with its last one.

    Raises:
        RuntimeError: the tokenizer writes the text of earlier tokens in another way once later ones are there.
    """
    tokenizer = model.require_tokenizer()
    pieces, whole, before = [], [], ""
    for n in range(1, len(ids) + 1):
        told = tokenizer.decode(ids[:n], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        whole.append(not told.endswith(_HELD_BACK))
        told = told.rstrip(_HELD_BACK)
        if not told.startswith(before):
            raise RuntimeError(
                f"the tokenizer of {model.name} writes {before[-40:]!r} otherwise once token {n} follows; its openings "
                "cannot be cut"
            )
        pieces.append(told[len(before) :])
        before = told
    return tuple(pieces), tuple(whole)
