"""Signals along openings as a table, and hand-offs and stops by name."""

import math

import pandas as pd
import pytest
import torch
from cascades import large, small, task

from latentcomm.experiments.cascade import Confident, KVHandOff, Opening, Oracle, TextHandOff
from latentcomm.experiments.cascade.by_name import depth_of, hand_offs_named, stops_named
from latentcomm.experiments.cascade.report import signal_table
from latentcomm.experiments.cascade.stops import STOPS, FixedTokens
from latentcomm.models.small import small_model

ENTROPIES = ([4.0, 2.0, 1.0], [2.0, 1.0], [8.0, 3.0, 5.0, 6.0])


def openings() -> list[Opening]:
    return [
        Opening.of_signals(entropy=torch.tensor(each), margin=torch.tensor(each) / 8) for each in map(list, ENTROPIES)
    ]


def seen() -> pd.DataFrame:
    rows = [
        {"item": item, "token": token, "piece": "", "entropy": value, "margin": value / 8, "surprise": math.nan}
        for item, values in zip("abc", ENTROPIES, strict=True)
        for token, value in enumerate(values, 1)
    ]
    return pd.DataFrame(rows)


class TestSignals:
    def test_medians_and_quartiles_are_those_of_the_openings_that_are_so_long(self) -> None:
        table = signal_table(openings(), seen(), {}, most=4).query("signal == 'entropy'")
        for row in table.to_dict("records"):
            there = torch.tensor([each[row["token"] - 1] for each in ENTROPIES if len(each) >= row["token"]])
            quartiles = there.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
            assert [row["low"], row["median"], row["high"]] == pytest.approx(quartiles)
            assert row["n"] == len(there)
        assert list(table["token"]) == [1, 2, 3, 4]

    def test_what_was_seen_of_some_openings_alone_is_counted_among_those(self) -> None:
        some = seen().assign(surprise=lambda rows: rows["entropy"].where(rows["item"] != "c"))
        table = signal_table(openings(), some, {}, most=4).query("signal == 'surprise'")
        assert list(table["token"]) == [1, 2, 3] and list(table["n"]) == [2, 2, 1]
        assert list(table["median"]) == [3.0, 1.5, 1.0]
        assert "surprise" not in set(signal_table(openings(), seen(), {}, most=4)["signal"])

    def test_a_stops_share_at_a_token_is_that_of_openings_where_it_has_fired(self) -> None:
        stops = {"confident": Confident(margin=0.5, window=1), "two": FixedTokens(2), "oracle": Oracle()}
        table = signal_table(openings(), seen(), stops, most=4)
        shares = {name: list(part["median"]) for name, part in table.groupby("signal")}
        assert shares["handed over by confident"] == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2 / 3])  # b never fires
        assert shares["handed over by two"] == [0, 1, 1, 1]
        assert "handed over by oracle" not in shares

    def test_a_stop_that_would_fire_after_the_most_has_not(self) -> None:
        late = {"confident": Confident(margin=0.5, window=2)}
        for most, last in ((4, 1 / 3), (3, 0.0)):
            table = signal_table(openings(), seen(), late, most=most).query("signal == 'handed over by confident'")
            assert table["median"].iloc[-1] == pytest.approx(last)

    def test_openings_without_a_token_are_refused(self) -> None:
        nothing = Opening.of_signals(entropy=torch.zeros(0))
        with pytest.raises(ValueError, match="no opening has a token"):
            signal_table([nothing], seen(), {}, most=4)


class TestNames:
    def test_a_stop_is_found_by_an_unambiguous_beginning_of_its_name(self) -> None:
        assert stops_named(["sentence", "oracle"]) == {name: STOPS[name] for name in ("sentence-end", "oracle")}
        for name in ("", "soon", "sentence-ends"):
            with pytest.raises(ValueError, match="there is no stop"):
                stops_named([name])

    def test_hand_offs_come_in_the_order_requested_or_refuse_the_pair(self) -> None:
        found = hand_offs_named(["kv", "text"], large(), small())
        assert list(found) == ["kv", "text"]
        assert isinstance(found["kv"], KVHandOff) and isinstance(found["text"], TextHandOff)
        found["kv"].check(large(), small(), task())
        with pytest.raises(ValueError, match="no hand-off 'thought'"):
            hand_offs_named(["thought"], large(), small())

    def test_maps_go_from_the_layer_asked_to_the_embeddings_or_a_layer(self) -> None:
        documents = [f"Alice is at the Colosseum. {' '.join(['The note says'] * n)}" for n in range(1, 7)]
        found = hand_offs_named(
            ["latent", "graft"], large(), small(), documents, read_layer=0, write_layer=1, measures_drift=False
        )
        assert (found["latent"].layers, found["graft"].layers) == ((0,), (0,))
        assert (found["latent"].write, found["graft"].write) == ("embeddings", 1)
        assert (found["latent"].name, found["graft"].name) == ("latent", "graft")

    @pytest.mark.parametrize(("n_layers", "layer"), [(1, 0), (2, 0), (3, 1), (6, 3), (30, 19)])
    def test_where_no_layer_is_given_two_thirds_of_the_blocks_are_done(self, n_layers: int, layer: int) -> None:
        assert depth_of(small_model(["a"], name="one", n_layers=n_layers, d_model=16)) == layer
