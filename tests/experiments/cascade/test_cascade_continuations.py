"""Continuations: what has been computed for a shorter opening is used again, and gives what a whole pass gives."""

import pytest
import torch
from cascades import LIMIT, SHORT, continued, greedy, large, opened_by, small, task
from numerics import assert_equal_to_rounding, forward_terms

from latentcomm.channels.base import receiver_prompts
from latentcomm.experiments.cascade import TextHandOff
from latentcomm.experiments.cascade.continuations import Request, continue_openings
from latentcomm.experiments.cascade.openings import openings_of
from latentcomm.experiments.cascade.resume import Continuation, ReadPrefix, after_prefixes, continue_rows
from latentcomm.models import Model


class TestSharing:
    def test_what_is_behind_a_prefix_is_what_a_whole_pass_says(self) -> None:
        reader, ids = small(), list(range(6, 20))
        prefix = ReadPrefix.read(reader, ids)
        log_p = reader.forward(torch.tensor([ids]))[0].double().log_softmax(-1)
        surprise = torch.stack([-log_p[at, token] for at, token in enumerate(ids[1:])])
        assert_equal_to_rounding(prefix.surprise, surprise, terms=forward_terms(reader))
        other = [*ids[:5], 30, 31]
        said = continue_rows(reader, after_prefixes([prefix, prefix], [ids[:8], other]), [4, 6])
        assert [list(one.ids) for one in said] == [greedy(reader, ids[:8], 4)[0], greedy(reader, other, 6)[0]]
        assert prefix.shared(other) == 5
        assert prefix.mean_surprise(other, 5) is None
        assert prefix.mean_surprise(ids[:8], 5) == pytest.approx(float(prefix.surprise[4:7].mean()))

    def test_a_continuation_that_writes_the_opening_is_not_written_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from latentcomm.experiments.cascade import continuations as handing

        runs: list[int] = []

        def counted(reader: Model, given: object, limits: list[int]) -> object:
            runs.append(len(limits))
            return continue_rows(reader, given, limits)  # type: ignore[arg-type]

        monkeypatch.setattr(handing, "continue_rows", counted)
        alone = opened_by(large())
        continued(TextHandOff(), large(), alone)
        assert runs == [len(alone)]  # behind the first token, and never again
        runs.clear()
        rows = openings_of(alone)
        known = [Continuation(row.ids, row.ended) for row in rows]
        wanted = [[n for n in SHORT if n <= len(row)] for row in rows]
        message = TextHandOff().content(alone)
        found = continue_openings(TextHandOff(), large(), Request(task(), message, wanted, known, LIMIT))
        assert runs == []
        assert [[one.reply for one in each] for each in found] == [
            [large().decode(row.ids)] * len(ns) for row, ns in zip(rows, wanted, strict=True)
        ]
        continued(TextHandOff(), small(), alone)
        assert len(runs) > 1  # another model goes its own way

    def test_the_rest_of_a_continuation_is_only_that_of_what_it_begins_with(self) -> None:
        said = Continuation((1, 2, 3), True)
        assert said.rest([1, 2]) == Continuation((3,), True)
        assert said.rest([1, 2, 3]) == Continuation((), True)
        assert said.rest([1, 3]) is None
        assert said.rest([1, 2, 3, 4]) is None

    def test_every_row_goes_on_to_its_own_limit(self) -> None:
        reader = small()
        prompts = receiver_prompts(reader, task())
        limits = [1, 3, 5, 7, 9]
        ids = [prompts.ids(row).tolist() for row in range(5)]
        said = continue_rows(reader, after_prefixes([ReadPrefix.read(reader, each) for each in ids], ids), limits)
        for row, (one, limit) in enumerate(zip(said, limits, strict=True)):
            assert (list(one.ids), one.ended) == greedy(reader, prompts.ids(row).tolist(), limit)
