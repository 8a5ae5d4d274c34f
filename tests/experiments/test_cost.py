"""Costs: against torch's own counter on models as they run, against the paper's formula by hand, and the front."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from tiny import BACKENDS, EVERY_MODEL, build, ids, model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from toys import toy

from latentcomm._core.stats import cost_front
from latentcomm.channels import Activation, Calm, Cipher, Interlat, Silent
from latentcomm.channels.calm import new_bridge
from latentcomm.channels.interlat import new_adapter
from latentcomm.experiments.cost import (
    ModelSize,
    flops,
    paper_activation_flops,
    paper_forward_flops,
    paper_text_flops,
    pass_flops,
)
from latentcomm.fusion import Replace
from latentcomm.hooks.decode import decode
from latentcomm.models import Model, recorded_passes
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site


def counted(tiny: Model, run: object) -> tuple[int, float]:
    """What torch counts while something runs, and what is counted here."""
    tiny.forward(ids(1)[0][None])  # the first pass of a model compares its bridge with transformers
    with FlopCounterMode(display=False) as counter, recorded_passes() as passes:
        run()  # type: ignore[operator]
    return counter.get_total_flops(), flops(passes)


class TestAgainstTorchsCounter:
    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    @pytest.mark.parametrize("rows", [1, 3])
    def test_a_pass_costs_its_matrix_products(self, architecture: str, backend: str, rows: int) -> None:
        tiny = model(architecture, backend)
        tokens = torch.stack(ids(*[7] * rows))
        for options in ({}, {"last_only": True}):
            theirs, ours = counted(tiny, lambda o=options: tiny.forward(tokens, **o))
            assert ours == theirs
        with_all, with_last = (counted(tiny, lambda o=o: tiny.forward(tokens, last_only=o))[1] for o in (False, True))
        assert with_all - with_last == 2 * rows * 6 * 32 * 64

    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    def test_a_step_on_a_cache_costs_its_one_token(self, architecture: str, backend: str) -> None:
        tiny = model(architecture, backend)
        cache, tokens = tiny.new_cache(2), torch.stack(ids(9, 9))
        tiny.forward(tokens[:, :5], cache=cache)
        for start, stop in ((5, 6), (6, 9)):
            theirs, ours = counted(tiny, lambda s=start, e=stop: tiny.forward(tokens[:, s:e], cache=cache))
            assert ours == theirs

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_a_whole_reply(self, backend: str) -> None:
        tiny = build("gpt2", backend)
        tiny.__dict__["stop_ids"] = frozenset()
        apart = [Prompts.from_ids(ids(*lengths)) for lengths in ((6, 6), (2,))]
        costs = [counted(tiny, lambda p=prompts: decode(tiny, p, max_new_tokens=4)) for prompts in apart]
        assert all(ours == theirs for theirs, ours in costs)
        _, together = counted(tiny, lambda: decode(tiny, Prompts.from_ids(ids(6, 2, 6)), max_new_tokens=4))
        assert together == sum(ours for _, ours in costs)  # holes behind shorter rows are nobody's cost

    def test_a_sender_that_stops_early_pays_for_the_blocks_that_ran(self) -> None:
        tiny = build("gpt2")
        costs = []
        for layer in range(3):
            channel = Activation("a", Site(layer), Site(0), Replace())
            theirs, ours = counted(tiny, lambda c=channel: c.send(tiny, toy()))
            costs.append(ours)
            assert ours == theirs
        assert costs[1] - costs[0] == pytest.approx(costs[2] - costs[1]) and costs[0] > 0

    def test_a_record_holds_what_ran_inside_it_and_no_more(self) -> None:
        tiny, prompts = model("gpt2"), Prompts.from_ids(ids(3))
        with recorded_passes() as outer:
            decode(tiny, prompts, max_new_tokens=1)
            with recorded_passes() as inner:
                decode(tiny, prompts, max_new_tokens=1)
        decode(tiny, prompts, max_new_tokens=1)
        assert (len(outer), len(inner)) == (2, 1)
        assert Silent().send(tiny, toy()).is_silent and flops([]) == 0


class TestSizes:
    def test_grouped_heads_and_gates_are_seen(self) -> None:
        assert ModelSize.of(model("llama")) == ModelSize(3, 32, 4, 8, 64, 64, 2, gated=True)
        assert ModelSize.of(model("gpt2")) == ModelSize(3, 32, 4, 8, 128, 64, 4, gated=False)

    def test_a_layer_by_hand(self) -> None:
        # 2 tokens after 3: q and o 2*4*4 each way, k and v with one head of two; 5 keys a query; three 4x8 matrices
        projections = 2 * 4 * (4 + 4 + 2 + 2)
        attention = 2 * 5 * 4 * 2
        gated = 2 * 3 * 4 * 8
        size = ModelSize(1, 4, 2, 2, 8, 10, 1, gated=True)
        assert pass_flops(size, n_new=2, n_past=3, n_unembedded=1) == 2 * (projections + attention + gated + 4 * 10)
        plain = ModelSize(1, 4, 2, 2, 8, 10, 1, gated=False)
        assert pass_flops(size, n_new=2, n_unembedded=0) - pass_flops(plain, n_new=2, n_unembedded=0) == 2 * 2 * 4 * 8
        assert pass_flops(size, n_new=2, n_layers=0, n_unembedded=0) == 0


class TestThePapersFormula:
    SIZE = ModelSize(n_layers=2, d_model=4, n_heads=2, d_head=2, d_mlp=8, d_vocab=10, n_key_value_heads=1, gated=True)

    def test_one_pass_by_hand(self) -> None:
        # P = 3: 4PVD = 480; a layer 8PDKH = 384, 4P^2KH = 144, 3HP^2 = 54, 4PDF = 384
        assert paper_forward_flops(self.SIZE, 3) == 480 + 2 * (384 + 144 + 54 + 384)

    def test_a_text_of_two_tokens_and_a_reply_of_one(self) -> None:
        # X(3) = 2412 twice, X(5) = 800 + 2 (640 + 400 + 150 + 640) = 4460 once
        assert paper_text_flops(self.SIZE, self.SIZE, prompt=3, message=2, reply=1) == 2 * 2412 + 4460

    def test_an_activation_after_the_first_of_two_layers(self) -> None:
        # 2PVD = 240, one layer 966, then X(3) = 2412
        assert paper_activation_flops(self.SIZE, self.SIZE, prompt=3, read=0, reply=1) == 240 + 966 + 2412

    def test_the_papers_ratio_for_its_8b_model_at_a_hundred_tokens_each(self) -> None:
        size = ModelSize(32, 4096, 32, 128, 14336, 128256, 8, gated=True)
        text = paper_text_flops(size, size, prompt=100, message=100, reply=10)
        state = paper_activation_flops(size, size, prompt=100, read=25, reply=10)
        assert 0.05 < state / text < 0.25  # without a cache: under a quarter, as they say


class TestTheFront:
    TABLE = pd.DataFrame(
        {
            "channel": ["dear", "silent", "text", "twin", "worse", "cheap twin"],
            "flops": [9.0, 1.0, 5.0, 5.0, 6.0, 1.0],
            "accuracy": [0.9, 0.1, 0.7, 0.7, 0.5, 0.05],
        }
    )

    def test_holds_what_nothing_beats_cheapest_first(self) -> None:
        assert cost_front(self.TABLE)["channel"].tolist() == ["silent", "text", "dear"]

    def test_agrees_with_a_comparison_of_all_pairs(self) -> None:
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            table = pd.DataFrame(
                {
                    "flops": torch.randint(0, 6, (12,), generator=generator).tolist(),
                    "accuracy": (torch.randint(0, 6, (12,), generator=generator) / 5).tolist(),
                }
            )
            rows = list(table.itertuples(index=False))
            best = {
                (row.flops, row.accuracy)
                for row in rows
                if not any(
                    (o.flops <= row.flops and o.accuracy > row.accuracy)
                    or (o.flops < row.flops and o.accuracy >= row.accuracy)
                    for o in rows
                )
            }
            found = cost_front(table)
            assert set(zip(found["flops"], found["accuracy"], strict=True)) == best and len(found) == len(best)

    def test_other_columns_and_what_is_missing(self) -> None:
        table = self.TABLE.rename(columns={"flops": "seconds"})
        assert len(cost_front(table, cost="seconds")) == 3
        with pytest.raises(ValueError, match="the table has no column 'flops'; it has channel, seconds, accuracy"):
            cost_front(table)
        table.loc[2, "seconds"] = float("nan")
        with pytest.raises(ValueError, match="row 2 has no number in 'seconds'"):
            cost_front(table, cost="seconds")


class TestProductsBesideTheModels:
    """What a channel multiplies by itself is on record, and is what torch counts of it."""

    @pytest.mark.parametrize("channel", ["cipher", "interlat", "compressed interlat", "calm"])
    def test_they_are_counted(self, channel: str) -> None:
        sender, receiver = build("gpt2"), build("gpt2", seed=1)
        made = {
            "cipher": lambda: Cipher(max_tokens=3, allow_empty=True, temperature=1.0),
            "interlat": lambda: Interlat("interlat", new_adapter(sender, receiver), plan_tokens=3),
            "compressed interlat": lambda: Interlat(
                "interlat", new_adapter(sender, receiver, n_steps=2), plan_tokens=3
            ),
            "calm": lambda: Calm("calm", new_bridge(sender, receiver, every=1)),
        }[channel]()
        task = toy()
        task = replace(task, items=task.items[:1])
        for one in (sender, receiver):
            one.__dict__["stop_ids"] = frozenset()
        theirs, ours = counted(sender, lambda: made.send(sender, task, receiver=receiver))
        assert ours == theirs
        message = made.send(sender, task, receiver=receiver)
        with sdpa_kernel(SDPBackend.MATH):  # torch does not count its fused attention on a processor
            theirs, ours = counted(
                receiver, lambda: decode(receiver, made.receive(receiver, task, message), max_new_tokens=3)
            )
        assert ours == theirs
