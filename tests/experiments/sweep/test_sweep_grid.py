"""The shared grid against a naive one: each cell a whole prompt under plain TransformerLens hooks, written out here."""

import errno
import functools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from numerics import assert_equal_to_rounding, assert_same_bits, forward_terms
from safetensors.torch import load_file
from tiny import (
    ARCHITECTURES,
    BACKENDS,
    CHOICES,
    EVERY_MODEL,
    PAD_ID,
    VOCABULARY,
    block_counter,
    build,
    files_in,
    hooks_left,
    ids,
    left_padded,
    model,
    needs_hooked_transformer,
    states,
    tokenizer,
    transformers_model,
)
from torch import Tensor
from toys import WRONG_FUSIONS

from latentcomm._core import files
from latentcomm._core.budget import within
from latentcomm.alignment import AffineMap, fit_ridge
from latentcomm.experiments.sweep import grid as layer_sweep
from latentcomm.experiments.sweep.grid import LayerSweep, sweep_layers
from latentcomm.fusion import Fusion, Linear, Mean, NormMatched, OrthogonalResidual, Replace, RightAligned, Sum
from latentcomm.hooks import shared_prefix as staircase
from latentcomm.models import Model, encode, load_model, recorded_passes, wrap_model
from latentcomm.models import builtin as weights
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site

Rule = Callable[[int, int, Tensor, Tensor], Tensor]
"""(read layer, write layer, own, incoming) -> fused."""


def plain_run(model: Model, row: Tensor, hooks: Sequence[tuple[str, Any]] = ()) -> Tensor:
    """The logits after the last token, by TransformerLens alone."""
    options: dict[str, Any] = {} if model.is_bridge else {"attention_mask": torch.ones(1, len(row)).long()}
    with torch.no_grad():
        return model.hooked.run_with_hooks(row[None], fwd_hooks=list(hooks), return_type="logits", **options)[0, -1]


def naive_grid(
    sender: Model,
    receiver: Model,
    sender_ids: Sequence[Tensor],
    receiver_ids: Sequence[Tensor],
    rule: Rule,
    *,
    reads: Sequence[int] = (0, 1, 2),
    writes: Sequence[int] = (0, 1, 2),
    read_position: int = -1,
    write_positions: Sequence[int] | None = None,
) -> Tensor:
    """All logits of every cell, [item read write vocabulary]."""
    items = []
    for number, (asked, answered) in enumerate(zip(sender_ids, receiver_ids, strict=True)):
        place = -1 if write_positions is None else write_positions[number]
        options: dict[str, Any] = {} if sender.is_bridge else {"attention_mask": torch.ones(1, len(asked)).long()}
        with torch.no_grad():
            _, cache = sender.hooked.run_with_cache(asked[None], **options)
        rows = []
        for read in reads:
            message = cache[f"blocks.{read}.hook_resid_post"][0, read_position].clone()
            cells = []
            for write in writes:

                def graft(
                    value: Tensor,
                    hook: Any,
                    read: int = read,
                    write: int = write,
                    message: Tensor = message,
                    place: int = place,
                ) -> Tensor:
                    value = value.clone()
                    value[0, place] = rule(read, write, value[0, place].clone(), message.to(value.dtype))
                    return value

                cells.append(plain_run(receiver, answered, [(f"blocks.{write}.hook_resid_post", graft)]))
            rows.append(torch.stack(cells))
        items.append(torch.stack(rows))
    return torch.stack(items)


@functools.cache
def mean_grid(architecture: str, backend: str) -> Tensor:
    """The naive grid of all four items under Mean, which several tests ask for."""
    tiny = model(architecture, backend)
    return naive_grid(tiny, tiny, SENDER_IDS, RECEIVER_IDS, everywhere(Mean()))


def everywhere(fusion: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    return lambda read, write, own, incoming: fusion(own, incoming)


SENDER_IDS = ids(6, 3, 6, 1, seed=1)
RECEIVER_IDS = ids(8, 5, 1, seed=2)
RECEIVER_IDS[1][-1] = PAD_ID  # a last token that equals the padding token is still a token
RECEIVER_IDS.insert(2, RECEIVER_IDS[0])  # two items of one receiver prompt
SENDER_PROMPTS, RECEIVER_PROMPTS = Prompts.from_ids(SENDER_IDS), Prompts.from_ids(RECEIVER_IDS)
CHOICES_OF_ITEMS = [CHOICES[:5], CHOICES[3:], CHOICES[4::-1], CHOICES[1:6]]
CHOICE_IDS = torch.tensor([[VOCABULARY[choice] for choice in row] for row in CHOICES_OF_ITEMS])
FOUR: dict[str, Any] = {
    "sender_prompts": SENDER_PROMPTS,
    "receiver_prompts": RECEIVER_PROMPTS,
    "choices": CHOICES_OF_ITEMS,
}
TWO: dict[str, Any] = {  # the first two items, where these are enough
    "sender_prompts": SENDER_PROMPTS.select([0, 1]),
    "receiver_prompts": RECEIVER_PROMPTS.select([0, 1]),
    "choices": CHOICES_OF_ITEMS[:2],
}
LAYOUTS = [
    ("bridge", "packed"),
    ("bridge", "batched"),
    pytest.param("hooked", "batched", marks=needs_hooked_transformer),  # a HookedTransformer never packs its rows
]
TWO_IDS = (SENDER_IDS[:2], RECEIVER_IDS[:2])


def of_choices(grid: Tensor, columns: Tensor = CHOICE_IDS) -> Tensor:
    return grid.gather(-1, columns[:, None, None].expand(*grid.shape[:3], -1))


def assert_same(found: LayerSweep, grid: Tensor, *, tolerance: float = 1e-11, columns: Tensor = CHOICE_IDS) -> None:
    assert found.logits is not None and found.top_token is not None
    assert found.logits.dtype == grid.dtype
    assert float((found.logits - of_choices(grid, columns)).abs().max()) < tolerance
    assert_same_bits(found.top_token, grid.argmax(-1))
    cells = of_choices(grid, columns).flatten(1, 2)  # the oracle itself must tell cells apart, or it proves nothing
    assert float((cells[:, :, None] - cells[:, None]).abs().amax(-1).flatten(1).sort(1).values[:, -1].min()) > 0.1


def pass_counter(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each pass of a sweep carries, the self-check's included."""
    sizes: list[int] = []
    climb = staircase.run_staircase

    def counted(*given: Any, n_rows: int, packed: bool) -> Tensor:
        sizes.append(n_rows)
        return climb(*given, n_rows=n_rows, packed=packed)

    monkeypatch.setattr(layer_sweep, "run_staircase", counted)
    return sizes


def never_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (layer_sweep, staircase):
        monkeypatch.setattr(module, "can_pack", lambda *_: False)


@dataclass(frozen=True)
class LargeMean:
    """The mean, by which the device runs out of memory above a number of rows."""

    most: int

    def __call__(self, own: Tensor, incoming: Tensor) -> Tensor:
        if len(own) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return (own + incoming) / 2


@pytest.mark.parametrize("layout", ["packed", "batched"])
@pytest.mark.parametrize("most", [1, 4])
def test_passes_that_do_not_fit_run_in_halves_and_are_saved_whole(
    most: int, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = model("llama")
    if layout == "batched":
        never_pack(monkeypatch)
    sizes = pass_counter(monkeypatch)
    found = sweep_layers(tiny, tiny, **FOUR, fusion=LargeMean(most), checkpoint=tmp_path)
    assert_same(found, mean_grid("llama", "bridge"))
    assert max(sizes) == 6 and 1 in sizes
    (saved,) = tmp_path.iterdir()
    assert len(files_in(saved)) == 3  # a pass for each receiver prompt, as with all memory


class TestTheGridEqualsTheNaiveOne:
    @pytest.mark.parametrize(("backend", "layout"), LAYOUTS)
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_in_every_architecture_and_layout(
        self, architecture: str, backend: str, layout: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tiny = model(architecture, backend)
        assert staircase.can_pack(tiny, 7, 1) == (backend == "bridge")
        if layout == "batched":
            never_pack(monkeypatch)
        grid = mean_grid(architecture, backend)
        swept = sweep_layers(tiny, tiny, **FOUR, fusion=Mean())
        assert_same(swept, grid)
        assert (swept.read_layers, swept.write_layers) == ((0, 1, 2), (0, 1, 2))
        assert hooks_left(tiny) == 0

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("architecture", ["llama", "neox"])
    @pytest.mark.parametrize(
        "fusion",
        [Replace(), OrthogonalResidual(0.5), NormMatched(Sum()), Linear(AffineMap(states(32, 32), states(32)), Mean())],
        ids=lambda fusion: type(fusion).__name__,
    )
    def test_with_every_kind_of_fusion(self, architecture: str, backend: str, fusion: Fusion) -> None:
        tiny = model(architecture, backend)
        grid = naive_grid(tiny, tiny, *TWO_IDS, everywhere(fusion))
        assert_same(sweep_layers(tiny, tiny, **TWO, fusion=fusion), grid, columns=CHOICE_IDS[:2])

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize(("width", "rule"), [(16, "right"), (48, "right"), (16, "linear"), (48, "alignment")])
    def test_between_models_of_unequal_widths(self, backend: str, width: int, rule: str) -> None:
        sender, receiver = model("llama", backend, d_model=width, seed=5), model("gpt2", backend)
        map = AffineMap(states(32, width, seed=3) / 4, states(32, seed=4))

        def right_aligned(own: Tensor, incoming: Tensor) -> Tensor:
            d = min(len(own), len(incoming))
            return torch.cat([own[: len(own) - d], (own[len(own) - d :] + incoming[len(incoming) - d :]) / 2])

        options: dict[str, Any]
        match rule:
            case "right":
                options, oracle = {"fusion": RightAligned(Mean())}, right_aligned
            case "linear":
                options = {"fusion": Linear(map, Sum())}
                oracle = lambda own, incoming: own + map.weight @ incoming + map.bias  # noqa: E731
            case _:
                options = {"fusion": Sum(), "alignment": map}
                oracle = lambda own, incoming: own + map.weight @ incoming + map.bias  # noqa: E731
        grid = naive_grid(sender, receiver, *TWO_IDS, everywhere(oracle))
        assert_same(sweep_layers(sender, receiver, **TWO, **options), grid, columns=CHOICE_IDS[:2])

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("by_cell", ["alignment", "fusion", "both"])
    def test_with_a_rule_of_its_own_in_each_cell(self, backend: str, by_cell: str) -> None:
        sender, receiver = model("gpt2", backend, d_model=16, seed=5), model("llama", backend)
        cells = [(read, write) for read in range(3) for write in range(3)]
        maps = {
            cell: AffineMap(states(32, 16, seed=10 + n) / 4, states(32, seed=20 + n)) for n, cell in enumerate(cells)
        }
        fusions: dict[tuple[int, int], Fusion] = {
            (read, write): (Replace(), Sum(), Mean())[(read + 2 * write) % 3] for read, write in cells
        }
        one = maps[0, 0]

        def rule(read: int, write: int, own: Tensor, incoming: Tensor) -> Tensor:
            map = one if by_cell == "fusion" else maps[read, write]
            message = map.weight @ incoming + map.bias
            which = 0 if by_cell == "alignment" else (read + 2 * write) % 3
            return (message, own + message, (own + message) / 2)[which]

        swept = sweep_layers(
            sender,
            receiver,
            **TWO,
            fusion=Replace() if by_cell == "alignment" else fusions,
            alignment=one if by_cell == "fusion" else maps,
        )
        assert_same(swept, naive_grid(sender, receiver, *TWO_IDS, rule), columns=CHOICE_IDS[:2])

    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    def test_for_writes_before_the_last_token(self, architecture: str, backend: str) -> None:
        tiny, places = model(architecture, backend), [2, -5, 7, 0]
        grid = naive_grid(
            tiny, tiny, SENDER_IDS, RECEIVER_IDS, everywhere(Mean()), read_position=0, write_positions=places
        )
        swept = sweep_layers(tiny, tiny, **FOUR, fusion=Mean(), read_position=0, write_position=places)
        assert_same(swept, grid)

    @pytest.mark.parametrize(("backend", "layout"), LAYOUTS)
    @pytest.mark.parametrize(("reads", "writes"), [([2, 0], [2, 0, 1]), ([1], [2]), ([1, 2], [1, 0]), ([0], [1, 2])])
    def test_for_some_layers_in_the_order_asked_for(
        self, backend: str, layout: str, reads: list[int], writes: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if layout == "batched":
            never_pack(monkeypatch)
        tiny = model("llama", backend)
        grid = naive_grid(tiny, tiny, *TWO_IDS, everywhere(Replace()), reads=reads, writes=writes)
        swept = sweep_layers(tiny, tiny, **TWO, fusion=Replace(), read_layers=reads, write_layers=writes)
        assert (swept.read_layers, swept.write_layers) == (tuple(reads), tuple(writes))
        assert swept.logits is not None
        assert float((swept.logits - of_choices(grid, CHOICE_IDS[:2])).abs().max()) < 1e-11
        assert swept.top_token is not None
        assert_same_bits(swept.top_token, grid.argmax(-1))

    @pytest.mark.parametrize(("backend", "layout"), LAYOUTS)
    def test_however_many_passes_it_takes(self, backend: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
        if layout == "batched":
            never_pack(monkeypatch)
        tiny, sizes = model("qwen2", backend), pass_counter(monkeypatch)

        def swept() -> LayerSweep:
            sizes.clear()
            return sweep_layers(tiny, tiny, **FOUR, fusion=Mean())

        whole = swept()
        assert sizes == [6, 1, 3, 3]  # the two items of one prompt, the check of the first cell, the others
        monkeypatch.setattr(staircase, "MOST_ROWS", 1 + 2 * 3)
        in_twos = swept()
        assert sizes == [2, 1, 2, 2, 2, 1, 2, 1]
        monkeypatch.setattr(staircase, "MEMORY_BUDGET", 1)
        one_by_one = swept()
        assert sizes == [1] * 13
        for parts in (in_twos, one_by_one):
            assert parts.logits is not None and whole.logits is not None
            assert float((parts.logits - whole.logits).abs().max()) < 1e-12
            assert parts.top_token is not None and whole.top_token is not None
            assert_same_bits(parts.top_token, whole.top_token)

    @pytest.mark.parametrize("most", [1, 2, 4, 5])
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_however_many_rows_are_packed(self, architecture: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(staircase, "MOST_PACKED", most)  # six rows a write layer: whole packs, and filled ones
        tiny = model(architecture)
        swept = sweep_layers(tiny, tiny, **FOUR, fusion=Mean(), write_layers=[2, 0, 1])
        assert_same(swept, mean_grid(architecture, "bridge")[:, :, [2, 0, 1]])

    def test_with_padding_on_the_left(self) -> None:
        tiny = model("llama")
        swept = sweep_layers(
            tiny, tiny, left_padded(SENDER_IDS), left_padded(RECEIVER_IDS), fusion=Mean(), choices=CHOICES_OF_ITEMS
        )
        assert_same(swept, mean_grid("llama", "bridge"))

    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    def test_in_float32_to_the_same_top_token(self, architecture: str, backend: str) -> None:
        tiny = model(architecture, backend, dtype=torch.float32)
        grid = naive_grid(tiny, tiny, *TWO_IDS, everywhere(Replace()))
        swept = sweep_layers(tiny, tiny, **TWO, fusion=Replace())
        assert_same(swept, grid, tolerance=1e-3, columns=CHOICE_IDS[:2])

    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    def test_replacing_a_state_by_itself_changes_nothing(self, architecture: str, backend: str) -> None:
        tiny = model(architecture, backend)
        swept = sweep_layers(tiny, tiny, RECEIVER_PROMPTS, RECEIVER_PROMPTS, fusion=Replace(), choices=CHOICES_OF_ITEMS)
        assert swept.logits is not None
        plain = torch.stack([plain_run(tiny, row) for row in RECEIVER_IDS]).gather(1, CHOICE_IDS)
        on_diagonal = swept.logits.diagonal(dim1=1, dim2=2).transpose(1, 2)
        assert float((on_diagonal - plain[:, None]).abs().max()) < 1e-12
        assert float((swept.logits[:, 0, 2] - plain).abs().max()) > 0.1  # and another layer's state does not

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_an_identity_map_equals_replacing(self, backend: str) -> None:
        tiny = model("neox", backend)
        options: dict[str, Any] = {"choices": CHOICES_OF_ITEMS}
        plain = sweep_layers(tiny, tiny, SENDER_PROMPTS, RECEIVER_PROMPTS, fusion=Replace(), **options)
        one = AffineMap(torch.eye(32).double(), torch.zeros(32).double())
        for rules in ({"fusion": Linear(one)}, {"fusion": Replace(), "alignment": one}):
            mapped = sweep_layers(tiny, tiny, SENDER_PROMPTS, RECEIVER_PROMPTS, **rules, **options)
            assert mapped.logits is not None and plain.logits is not None
            assert_equal_to_rounding(mapped.logits, plain.logits, terms=forward_terms(tiny))


class TestArchitecturesThatNeedMore:
    """Soft caps, sliding windows, biases that grow with distance: equal to the naive grid or refused, never wrong."""

    @pytest.mark.parametrize("place", [-1, -4])
    @pytest.mark.parametrize(
        ("architecture", "window"), [("gemma2", 4096), ("gemma2", 3), ("mistral", 4096), ("mistral", 3), ("mistral", 8)]
    )
    def test_windows_and_soft_caps(self, architecture: str, window: int, place: int) -> None:
        tiny = model(architecture, sliding_window=window)
        senders, receivers = ids(6, 4, seed=1), ids(9, 9, seed=2)
        assert staircase.can_pack(tiny, 8, 1) == (window > 8)
        grid = naive_grid(tiny, tiny, senders, receivers, everywhere(Replace()), write_positions=[place, place])
        columns = CHOICE_IDS[:2]
        swept = sweep_layers(
            tiny,
            tiny,
            Prompts.from_ids(senders),
            Prompts.from_ids(receivers),
            fusion=Replace(),
            choices=CHOICES_OF_ITEMS[:2],
            write_position=place,
        )
        assert swept.logits is not None and swept.top_token is not None
        assert float((swept.logits - of_choices(grid, columns)).abs().max()) < 1e-11
        assert_same_bits(swept.top_token, grid.argmax(-1))

    def test_a_step_that_differs_from_a_plain_run_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tiny = model("llama")
        read_prefix = staircase.read_prefix

        def forgetful(*given: Any) -> staircase.Prefix:
            prefix = read_prefix(*given)
            layers = [(keys, values * 1.001) for keys, values in prefix.layers]
            return staircase.Prefix(layers, prefix.n_cached, prefix.tail, prefix.logits)

        monkeypatch.setattr(layer_sweep, "read_prefix", forgetful)
        with pytest.raises(RuntimeError, match="a cached one-token step of tiny-llama differs from a plain run by"):
            sweep_layers(tiny, tiny, SENDER_PROMPTS, RECEIVER_PROMPTS, fusion=Mean())

    def test_a_cell_that_differs_from_a_grafted_run_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tiny, climb = model("llama"), staircase.run_staircase
        monkeypatch.setattr(layer_sweep, "run_staircase", lambda *given, **options: climb(*given, **options).flip(-1))
        for choices in (CHOICES_OF_ITEMS, None):
            with pytest.raises(RuntimeError, match="the cell k=0, j=0 differs from a grafted run of its own by"):
                sweep_layers(tiny, tiny, SENDER_PROMPTS, RECEIVER_PROMPTS, fusion=Mean(), choices=choices)


class TestThePrice:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_the_sender_runs_once_and_stops_at_the_deepest_read_layer(self, backend: str) -> None:
        sender, receiver = build("llama", backend), model("gpt2", backend)
        seen = block_counter(sender)
        options: dict[str, Any] = {"fusion": Sum(), "read_layers": [1, 0]}
        sweep_layers(sender, receiver, SENDER_PROMPTS, RECEIVER_PROMPTS, **options)
        assert seen == [1, 1, 0]

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_a_prefix_is_read_once_for_all_items_of_one_prompt(
        self, backend: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tiny, read, read_prefix = model("llama", backend), [], staircase.read_prefix

        def counted(model: Model, row: Tensor, place: int) -> staircase.Prefix:
            read.append(row.tolist())
            return read_prefix(model, row, place)

        monkeypatch.setattr(layer_sweep, "read_prefix", counted)
        sweep_layers(tiny, tiny, SENDER_PROMPTS, RECEIVER_PROMPTS, fusion=Mean())
        distinct = [RECEIVER_IDS[0].tolist(), RECEIVER_IDS[1].tolist(), RECEIVER_IDS[3].tolist()]
        assert read == distinct

    @pytest.mark.parametrize(("backend", "layout"), LAYOUTS)
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_a_pass_leaves_the_prefix_it_ran_on_as_it_was(self, architecture: str, backend: str, layout: str) -> None:
        tiny = model(architecture, backend)
        prefix = staircase.read_prefix(tiny, RECEIVER_IDS[0], 7)
        before = [(keys.clone(), values.clone()) for keys, values in prefix.layers]

        def climb() -> Tensor:
            return staircase.run_staircase(
                tiny, prefix, [0, 1, 2], lambda layer, own: states(4, 32), n_rows=4, packed=layout == "packed"
            )

        first, second = climb(), climb()
        assert_same_bits(first, second)
        for (keys, values), (old_keys, old_values) in zip(prefix.layers, before, strict=True):
            assert_same_bits(keys, old_keys)
            assert_same_bits(values, old_values)

    def test_rows_and_memory_bound_a_pass(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tiny = model("llama")
        assert staircase.columns_per_pass(tiny, 8, 1, 3) == (staircase.MOST_ROWS - 1) // 3
        monkeypatch.setattr(staircase, "MOST_ROWS", 31)
        assert staircase.columns_per_pass(tiny, 8, 1, 3) == 10
        assert staircase.columns_per_pass(tiny, 8, 1, 100) == 1
        # By hand for a row in the batch: scores 3 * 4 heads * 8 bytes * 2 * 10 positions, and 8 bytes for each of two
        # tail tokens' 8 * 32 + 3 * 64 numbers and for 10 positions' keys and values, 2 * 3 layers * 2 heads of 8.
        bytes_of_a_row = 3 * 4 * 8 * 2 * 10 + 8 * (2 * (8 * 32 + 3 * 64) + 10 * 2 * 3 * 2 * 8)
        for columns in (1, 2, 5):
            with within((1 + columns * 3) * bytes_of_a_row):
                assert staircase.columns_per_pass(tiny, 8, 2, 3) == columns
            monkeypatch.setattr(staircase, "MEMORY_BUDGET", (1 + columns * 3) * bytes_of_a_row)
            assert staircase.columns_per_pass(tiny, 8, 2, 3) == columns
            monkeypatch.setattr(staircase, "MEMORY_BUDGET", (1 + columns * 3) * bytes_of_a_row - 1)
            assert staircase.columns_per_pass(tiny, 8, 2, 3) == max(1, columns - 1)

    def test_a_sweep_within_a_budget_is_the_same_in_more_passes(self, tmp_path: Path) -> None:
        tiny = model("llama")
        for folder, n_bytes in (("a", 1), ("b", None)):
            with within(n_bytes):
                found = sweep_layers(tiny, tiny, **FOUR, fusion=Mean(), checkpoint=tmp_path / folder)
            assert_same(found, mean_grid("llama", "bridge"))
        assert [len(files_in(next((tmp_path / each).iterdir()))) for each in "ab"] == [12, 3]  # 12 messages, 3 prompts

    @pytest.mark.parametrize("writes", [tuple(range(8)), (5, 0, 2)])
    def test_the_prefixes_that_packs_copy_stay_within_the_budget(
        self, writes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tiny, held = build("llama", n_layers=8), []
        prefix = staircase.read_prefix(tiny, ids(121)[0], 120)
        growing = Model.forward_growing

        def forward(*given: Any, cache: Any, **options: Any) -> Tensor:
            logits = growing(*given, cache=cache, **options)
            held.append(sum(each.nbytes for layer in cache.layers for each in (layer.keys, layer.values)))
            return logits

        def run() -> Tensor:
            held.clear()
            sent = states(8, 32)[: staircase.columns_per_pass(tiny, 120, 1, len(writes))]
            return staircase.run_staircase(tiny, prefix, writes, lambda *_: sent, n_rows=len(sent), packed=True)

        monkeypatch.setattr(Model, "forward_growing", forward)
        monkeypatch.setattr(staircase, "MOST_PACKED", 2)
        whole = run()
        (unbounded,) = held
        assert len(whole[0]) == 8
        for share in (0.7, 0.3):
            monkeypatch.setattr(staircase, "MEMORY_BUDGET", round(share * unbounded))
            found = run()
            assert max(held) <= share * unbounded
            assert_equal_to_rounding(found, whole[:, : found.shape[1]], terms=forward_terms(tiny))

    def test_the_whole_vocabulary_is_unembedded_in_bounded_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tiny = model("llama")
        options: dict[str, Any] = {"fusion": Mean()}
        whole = sweep_layers(tiny, tiny, SENDER_PROMPTS, RECEIVER_PROMPTS, **options)
        monkeypatch.setattr(layer_sweep, "UNEMBED_BYTES", 1)
        assert whole.top_token is not None
        row_by_row = sweep_layers(tiny, tiny, SENDER_PROMPTS, RECEIVER_PROMPTS, **options).top_token
        assert row_by_row is not None
        assert_same_bits(whole.top_token, row_by_row)

    def test_without_choices_or_without_top_tokens_only_the_other_is_kept(self) -> None:
        tiny = model("llama")
        free = sweep_layers(tiny, tiny, SENDER_PROMPTS, RECEIVER_PROMPTS, fusion=Mean())
        assert free.logits is None and free.choices is None and free.top_token is not None
        scored = sweep_layers(
            tiny, tiny, SENDER_PROMPTS, RECEIVER_PROMPTS, fusion=Mean(), choices=CHOICES_OF_ITEMS, top_token=False
        )
        assert scored.top_token is None and scored.logits is not None
        grid = mean_grid("llama", "bridge")
        assert_same_bits(free.top_token, grid.argmax(-1))
        assert float((scored.logits - of_choices(grid)).abs().max()) < 1e-11


class TestInterruption:
    """Two passes for each of two prompts, each kept as it is done."""

    @pytest.fixture
    def swept(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., LayerSweep]:
        monkeypatch.setattr(staircase, "MOST_ROWS", 1 + 2 * 3)
        tiny = model("llama")

        def run(**changes: Any) -> LayerSweep:
            given: dict[str, Any] = {
                "sender": tiny,
                "receiver": tiny,
                **TWO,
                "fusion": Mean(),
                "checkpoint": tmp_path / "kept",
            } | changes
            positional = [given.pop(name) for name in ("sender", "receiver", "sender_prompts", "receiver_prompts")]
            return sweep_layers(*positional, **given)

        return run

    @pytest.mark.parametrize("stop_at", [0, 3, 4])
    def test_what_is_done_is_kept_and_the_next_run_goes_on(
        self, swept: Callable[..., LayerSweep], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stop_at: int
    ) -> None:
        whole = swept(checkpoint=None)
        assert files_in(tmp_path) == []
        climb = staircase.run_staircase
        done: list[int] = []

        def interrupted(*given: Any, n_rows: int, packed: bool) -> Tensor:
            if len(done) == stop_at:
                raise KeyboardInterrupt
            done.append(n_rows)
            return climb(*given, n_rows=n_rows, packed=packed)

        monkeypatch.setattr(layer_sweep, "run_staircase", interrupted)
        with pytest.raises(KeyboardInterrupt):
            swept()
        kept = [name for name in files_in(tmp_path) if name.endswith(".safetensors")]
        assert len(kept) == max(0, stop_at - 1)  # one pass went to the check of the first cell
        monkeypatch.setattr(layer_sweep, "run_staircase", climb)
        sizes = pass_counter(monkeypatch)
        resumed = swept()
        assert len(sizes) == 4 - len(kept) + 1
        assert resumed.logits is not None and whole.logits is not None
        assert_same_bits(resumed.logits, whole.logits)
        assert resumed.top_token is not None and whole.top_token is not None
        assert_same_bits(resumed.top_token, whole.top_token)
        sizes.clear()
        again = swept()
        assert sizes == []
        assert again.logits is not None
        assert_same_bits(again.logits, whole.logits)

    @pytest.mark.parametrize("where", ["save_file", "replace"])
    def test_a_full_disk_says_so_and_leaves_no_half_written_pass(
        self, swept: Callable[..., LayerSweep], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
    ) -> None:
        calls: list[int] = []
        kept_file, replace = files.save_file, os.replace

        def full_at_the_third(original: Callable[..., None]) -> Callable[..., None]:
            def save(*given: Any, **options: Any) -> None:
                calls.append(0)
                if len(calls) == 3:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                original(*given, **options)

            return save

        with monkeypatch.context() as patch:
            if where == "save_file":
                patch.setattr(files, "save_file", full_at_the_third(kept_file))
            else:
                patch.setattr(os, "replace", full_at_the_third(replace))
            message = r"\(No space left on device\); free some space and run again; finished work is saved"
            with pytest.raises(RuntimeError, match=message):
                swept()
        kept = [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
        assert sorted(path.name for path in kept) == ["pass-000000.safetensors", "pass-000001.safetensors"]
        assert {load_file(path)["logits"].shape for path in kept} == {(3, 2, 5), (3, 1, 5)}
        sizes = pass_counter(monkeypatch)
        resumed, whole = swept(), swept(checkpoint=None)
        assert len(sizes) == (2 + 1) + (4 + 1)
        assert resumed.logits is not None and whole.logits is not None
        assert_same_bits(resumed.logits, whole.logits)

    @pytest.mark.parametrize(
        "change",
        [
            {"fusion": Sum()},
            {"fusion": Linear(AffineMap(states(32, 32), states(32)))},
            {"alignment": AffineMap(states(32, 32), states(32))},
            {"read_layers": [0, 2, 1]},
            {"write_layers": [0, 2, 1]},
            {"write_layers": [2, 1]},
            {"choices": [CHOICES[4::-1]]},
            {"top_token": False},
            {"read_position": 0},
            {"write_position": 0},
            {"sender_prompts": RECEIVER_PROMPTS.select([0])},
            {"receiver_prompts": SENDER_PROMPTS.select([0])},
            {"sender": "another"},
            {"receiver": "another"},
            {"rows": 4},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_a_checkpoint_of_another_sweep_is_not_reused(
        self, swept: Callable[..., LayerSweep], monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
    ) -> None:
        one = {name: TWO[name].select([0]) for name in ("sender_prompts", "receiver_prompts")}
        one |= {"choices": TWO["choices"][:1]}
        swept(**one)
        change = {name: model("llama", seed=9) if value == "another" else value for name, value in change.items()}
        change = one | change
        if rows := change.pop("rows", None):  # another release may cut the grid into other passes
            monkeypatch.setattr(staircase, "MOST_ROWS", rows)
        sizes = pass_counter(monkeypatch)
        found, fresh = swept(**change), swept(**change, checkpoint=None)
        assert len(sizes) % 2 == 0 and sizes[: len(sizes) // 2] == sizes[len(sizes) // 2 :]
        if found.logits is not None and fresh.logits is not None:
            assert_same_bits(found.logits, fresh.logits)
        if found.top_token is not None and fresh.top_token is not None:
            assert_same_bits(found.top_token, fresh.top_token)

    def test_left_padding_and_a_list_of_positions_are_the_same_sweep(
        self, swept: Callable[..., LayerSweep], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        swept()
        sizes = pass_counter(monkeypatch)
        swept(receiver_prompts=left_padded(TWO_IDS[1]), sender_prompts=left_padded(TWO_IDS[0]))
        swept(write_position=[7, 4])
        assert sizes == []

    def test_a_fusion_without_stable_content_cannot_be_checkpointed(self, swept: Callable[..., LayerSweep]) -> None:
        fusions = {(k, j): Plain() if (k, j) == (1, 1) else Mean() for k in range(3) for j in range(3)}
        with recorded_passes() as passes:
            for given in ({"fusion": Plain()}, {"fusion": fusions}, {"alignment": lambda rows: rows}):
                kind = "function" if "alignment" in given else "Plain"
                message = (
                    f"{next(iter(given))} cannot be part of a checkpoint's key, since {kind} has no digest; make it a"
                )
                with pytest.raises(ValueError, match=f"^{message} frozen dataclass of plain values and tensors, or"):
                    swept(**given)
        assert passes == []
        assert swept(fusion=lambda own, incoming: own, checkpoint=None).logits is not None


class Plain:
    """A fusion as somebody might write it, who has not read what a checkpoint needs."""

    def __call__(self, own: Tensor, incoming: Tensor) -> Tensor:
        return own + incoming


class TestBadInput:
    def refused(self, message: str, error: type[Exception] = ValueError, **changes: Any) -> None:
        given: dict[str, Any] = {
            "sender": model("llama"),
            "receiver": model("llama"),
            "sender_prompts": SENDER_PROMPTS,
            "receiver_prompts": RECEIVER_PROMPTS,
            "fusion": Mean(),
        } | changes
        positional = [given.pop(name) for name in ("sender", "receiver", "sender_prompts", "receiver_prompts")]
        with pytest.raises(error, match=message):
            sweep_layers(*positional, **given)

    def test_widths_that_differ_without_a_rule(self) -> None:
        wide = "own is 32 wide but incoming 16; wrap the fusion in RightAligned, or map the message with Linear"
        self.refused(wide, sender=model("llama", d_model=16))
        self.refused(wide, sender=model("llama", d_model=16), alignment=AffineMap(states(16, 16), states(16)))
        self.refused(
            wide, sender=model("llama", d_model=16), fusion={(k, j): Sum() for k in range(3) for j in range(3)}
        )

    def test_a_fusion_that_changes_the_width(self) -> None:
        wrong = (
            "fusion <lambda> returned the shape (1, 30) at blocks.0.hook_resid_post; it must be that of own, (1, 32)"
        )
        self.refused(re.escape(wrong), fusion=lambda own, incoming: own[..., 2:])

    @pytest.mark.parametrize(("wrong", "message"), WRONG_FUSIONS.values(), ids=WRONG_FUSIONS)
    def test_a_fusion_that_returns_no_states(self, wrong: Any, message: str) -> None:
        self.refused(re.escape(message), fusion=wrong)
        cells = {(k, j): wrong if (k, j) == (2, 1) else Mean() for k in range(3) for j in range(3)}
        self.refused(f"{re.escape(message)}.*", fusion=cells)

        def after_the_check(own: Tensor, incoming: Tensor) -> Any:
            return own if len(own) == 1 else wrong(own, incoming)

        self.refused(re.escape(message), fusion=after_the_check)

    @pytest.mark.parametrize("axis", ["read_layers", "write_layers"])
    def test_layers_that_are_not_there_or_named_twice_or_none(self, axis: str) -> None:
        self.refused("layer 3 is outside tiny-llama, whose layers are 0 to 2", **{axis: [0, 3]})
        self.refused("layer -1 is negative; layers count from 0", **{axis: [-1]})
        self.refused(r"layers \[1, 0, 1\] must be at least one, each once", **{axis: [1, 0, 1]})
        self.refused(r"layers \[\] must be at least one, each once", **{axis: []})

    def test_processed_weights_beside_raw_ones(self) -> None:
        processed = build("gpt2")
        processed.hooked.enable_compatibility_mode(disable_warnings=True)
        processed = changed(processed, name="folded")
        self.refused("folded has processed weights .folded or centred. and tiny-llama has raw ones", sender=processed)
        self.refused("folded has processed weights .folded or centred. and tiny-llama has raw ones", receiver=processed)

    def test_numbers_of_prompts_that_differ(self) -> None:
        some = SENDER_PROMPTS.select([0, 1])
        self.refused("2 sender prompts for 4 receiver prompts; give one of each an item", sender_prompts=some)

    def test_choices_that_a_first_token_cannot_tell_apart(self) -> None:
        twins = [("Greece", "Italy"), (" Greece", " Greece"), CHOICES[:2], CHOICES[:2]]
        message = "the choices ' Greece' and ' Greece' of item 1 begin with the same token in tiny-llama"
        self.refused(message, choices=twins)
        # The same first word in two choices: "The Gambia" and "The Hague".
        self.refused(
            "the choices ' the Italy' and ' the Peru' of item 0 begin with the same token",
            choices=[(" the Italy", " the Peru")] * 4,
        )

    @pytest.mark.parametrize("nothing", ["", "  Greece", "\nGreece"])
    def test_a_choice_without_a_first_token_of_its_own(self, nothing: str) -> None:
        self.refused("has no single first token for choice scoring", choices=[(" Italy", nothing)] * 4)

    def test_choices_of_other_numbers(self) -> None:
        self.refused("3 lists of choices for 4 items; give one list an item", choices=CHOICES_OF_ITEMS[:3])
        uneven = [*CHOICES_OF_ITEMS[:3], CHOICES[:4]]
        self.refused(r"items have \[4, 5\] choices; give each the same number, at least 2", choices=uneven)
        self.refused(r"items have \[1\] choices; give each the same number, at least 2", choices=[CHOICES[:1]] * 4)

    def test_nothing_to_record(self) -> None:
        self.refused("nothing to record: give choices, or leave top_token on", top_token=False)

    def test_positions_outside_a_prompt(self) -> None:
        self.refused("write position 5 is outside prompt 1, which has 5 tokens", write_position=5)
        self.refused("write position -6 is outside prompt 1, which has 5 tokens", write_position=[0, -6, 0, 0])
        self.refused("3 write positions for 4 prompts; give one each, or one for all", write_position=[0, 0, 0])
        self.refused("position 4 is outside prompt 1, which has 3 tokens", read_position=4)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_message_that_is_not_finite(self, value: float) -> None:
        broken = build("llama")
        with torch.no_grad():
            broken.hooked.embed.weight[SENDER_IDS[1][-1]] = value
        kind = "NaN" if value != value else "infinity"
        held = f"its weights hold {kind} in model.embed_tokens.weight; load weights that are whole"
        self.refused(rf"the message of item \d at layer 0 of tiny-llama is not finite: {held}", sender=broken)
        self.refused(
            f"^the logits of tiny-llama are not finite: {held}", receiver=broken, receiver_prompts=SENDER_PROMPTS
        )

    def test_fused_states_that_are_not_finite(self) -> None:
        def overflowing(own: Tensor, incoming: Tensor) -> Tensor:
            return own / 0

        message = r"the fused state at blocks\.{}\.hook_resid_post is not finite; fusion overflowing does not fit it"
        self.refused(message.format(0), fusion=overflowing)
        cells = {(k, j): overflowing if (k, j) == (1, 2) else Mean() for k in range(3) for j in range(3)}
        self.refused(message.format(2), fusion=cells)

    def test_states_that_overflow_on_their_way_up(self) -> None:
        raw = transformers_model("llama", dtype=torch.float16)
        with torch.no_grad():
            for layer in raw.model.layers:
                layer.mlp.down_proj.weight.mul_(10)
        loud = wrap_model(raw, tokenizer(), name="loud")
        largest = AffineMap(torch.zeros(32, 32).half(), torch.full((32,), 65504.0).half())
        message = r"the states of loud after a graft are not finite: its stream stops being so at blocks\.1\.hook_"
        self.refused(message, receiver=loud, fusion=Replace(), alignment=largest)

    def test_a_checkpoint_of_a_model_with_hooks_attached(self, tmp_path: Path) -> None:
        tiny = model("llama")
        with tiny.hooked.hooks(fwd_hooks=[(Site(0).hook_name, lambda value, hook: 2 * value)]):
            self.refused("a sweep of a model with hooks attached cannot be saved", checkpoint=tmp_path)
            hooked = sweep_layers(tiny, tiny, **TWO, fusion=Mean())
        plain = sweep_layers(tiny, tiny, **TWO, fusion=Mean())
        assert hooked.logits is not None and plain.logits is not None
        assert not torch.allclose(hooked.logits, plain.logits)

    def test_a_cell_without_a_rule(self) -> None:
        some = {(k, j): Mean() for k in range(3) for j in range(3) if (k, j) != (2, 1)}
        self.refused("there is no fusion for the cell k=2, j=1", fusion=some)
        maps = {(0, 0): AffineMap(states(32, 32), states(32))}
        self.refused("there is no alignment for the cell k=0, j=1", alignment=maps)


class TestScoring:
    LOGITS = torch.tensor(
        [  # item 0: reads 2, writes 2, choices 3
            [[[3.0, 1.0, 2.0], [0.0, 5.0, 1.0]], [[1.0, 2.0, 4.0], [9.0, 8.0, 7.0]]],
            [[[0.0, 0.0, 1.0], [0.0, 2.0, 1.0]], [[2.0, 1.0, 1.0], [0.0, 0.0, 3.0]]],
        ]
    )
    TOKENS = torch.tensor([[[1, 2], [3, 1]], [[2, 2], [9, 1]]])
    NAMES = MappingProxyType({" Greece": 1, " Italy": 2, " Peru": 3, " Hellas": 9})

    def sweep(self, **changes: Any) -> LayerSweep:
        given: dict[str, Any] = {
            "read_layers": (0, 1),
            "write_layers": (0, 1),
            "messages": torch.zeros(2, 2, 4),
            "logits": self.LOGITS,
            "top_token": self.TOKENS,
            "choices": ((" Greece", " Italy", " Peru"), (" Italy", " Peru", " Greece")),
            "first_token": self.NAMES.__getitem__,
        }
        return LayerSweep(**(given | changes))

    def test_with_choices_the_highest_scored_one_must_be_an_answer(self) -> None:
        swept = self.sweep()
        # Item 0 picks Greece Italy / Peru Greece, item 1 picks Greece Peru / Italy Greece.
        assert swept.correct([" Greece", " Greece"]).tolist() == [[[1, 0], [0, 1]], [[1, 0], [0, 1]]]
        assert swept.accuracy([" Greece", " Peru"]).tolist() == [[0.5, 0.5], [0.0, 0.5]]
        assert swept.accuracy([(" Italy", " Peru"), [" Italy"]]).tolist() == [[0.0, 0.5], [1.0, 0.0]]

    def test_an_alias_that_is_no_choice_does_no_harm(self) -> None:
        given = [(" Greece", " Hellas"), " Greece"]
        assert_same_bits(self.sweep().accuracy(given), self.sweep().accuracy([" Greece", " Greece"]))

    def test_without_choices_the_top_token_must_begin_an_answer(self) -> None:
        swept = self.sweep(logits=None, choices=None)
        assert swept.accuracy([" Greece", " Italy"]).tolist() == [[1.0, 0.5], [0.0, 0.5]]
        assert swept.accuracy([" Greece", (" Hellas", " Greece")]).tolist() == [[0.5, 0.0], [0.5, 1.0]]

    def test_top_tokens_are_scored_beside_the_choices(self) -> None:
        swept = self.sweep()
        assert swept.top_token_correct([" Peru", " Italy"]).tolist() == [[[0, 0], [1, 0]], [[1, 1], [0, 0]]]
        with pytest.raises(ValueError, match="saved no top tokens; run it with top_token=True"):
            self.sweep(top_token=None).top_token_correct([" Peru", " Italy"])

    def test_answers_that_fit_no_item_are_refused(self) -> None:
        with pytest.raises(ValueError, match="1 answers for 2 items; give one an item"):
            self.sweep().accuracy([" Greece"])
        with pytest.raises(
            ValueError, match=r"item 1 has the answers \[' Hellas'\], none of which is among its choices"
        ):
            self.sweep().accuracy([" Greece", " Hellas"])


@pytest.mark.real_weights
def test_on_real_weights_every_cell_has_the_naive_top_token() -> None:
    if not weights.is_on_disk(weights.BUILT_IN["smollm2-135m-instruct"]):
        pytest.skip("the built-in model is not on disk; latentcomm sweep fetches it")
    smollm = load_model("smollm2-135m-instruct")
    senders = encode(smollm, ["Alice is at the Colosseum. Alice is in the country of"])
    receivers = encode(smollm, ["Alice is in the country of"])
    reads, writes = [0, 15, 26], [0, 14, 27]
    choices = [" Italy", " Greece", " France", " Japan"]
    grid = naive_grid(
        smollm, smollm, [senders.ids(0)], [receivers.ids(0)], everywhere(Replace()), reads=reads, writes=writes
    )
    swept = sweep_layers(
        smollm,
        smollm,
        senders,
        receivers,
        fusion=Replace(),
        read_layers=reads,
        write_layers=writes,
        choices=[choices],
    )
    columns = torch.tensor([[smollm.first_token(choice) for choice in choices]])
    assert_same(swept, grid, tolerance=1e-2, columns=columns)
    assert of_choices(grid, columns)[0, 2, 2].argmax() == 0  # the message says Italy


def test_an_alignment_fitted_on_states_is_a_rule(tmp_path: Path) -> None:
    sender, receiver = model("llama", d_model=16, seed=5), model("gpt2")
    map = fit_ridge(states(40, 16, seed=1), states(40, 32, seed=2), penalty=1.0)
    map.save(tmp_path / "map.safetensors")
    loaded = AffineMap.load(tmp_path / "map.safetensors")
    options: dict[str, Any] = {"fusion": Replace(), "choices": CHOICES_OF_ITEMS}
    fitted = sweep_layers(sender, receiver, SENDER_PROMPTS, RECEIVER_PROMPTS, alignment=map, **options)
    again = sweep_layers(sender, receiver, SENDER_PROMPTS, RECEIVER_PROMPTS, alignment=loaded, **options)
    assert fitted.logits is not None and again.logits is not None
    assert_same_bits(fitted.logits, again.logits)
