"""Maps of latent hand-offs: fitted where the states are read and written, on the tokens that both models share."""

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from cascades import continued, large, of_bytes, opened_by, small, task
from tiny import states

from latentcomm.alignment import AffineMap, fit_ridge
from latentcomm.experiments.cascade import fit_hand_off, fitting, write_openings
from latentcomm.experiments.cascade.openings import EMBEDDING
from latentcomm.experiments.compare.run import map_tokens
from latentcomm.hooks.capture import capture
from latentcomm.hooks.paired_text import pair_tokens
from latentcomm.models.sites import Site


class TestFitting:
    DOCUMENTS = tuple(
        f"{who} says {a} is in {b}. The {c} is at the note of {a}." for who in ("Alice", "The note")
        for a in tiny.COUNTRIES for b in tiny.COUNTRIES[:3] for c in ("country", "Colosseum")
    )  # fmt: skip

    def test_a_model_is_mapped_to_itself_as_it_is(self) -> None:
        fitted = fit_hand_off(large(), large(), self.DOCUMENTS, read=1, write=1, measures_drift=False)
        assert fitted.alignment is not None
        kept = torch.cat([part["states.1"] for part in write_openings(large(), task(), layers=(1,)).parts or ()])
        seen = fit_hand_off(large(), small(), self.DOCUMENTS, read=1, write=1, measures_drift=False)
        assert seen.alignment is not None
        assert fitted.alignment.r_squared(kept, kept) > 0.9
        assert seen.alignment.r_squared(kept, kept) < 0.5

    def test_embeddings_are_mapped_to_the_row_of_the_token_that_ends_there(self) -> None:
        fitted = fit_hand_off(large(), of_bytes(), self.DOCUMENTS, read=EMBEDDING, max_tokens=16, measures_drift=False)
        assert fitted.alignment is not None
        assert (fitted.alignment.d_in, fitted.alignment.d_out) == (32, 16)
        own = fitted.to_itself()
        assert own is not None
        assert own.alignment is not None
        assert own.read == EMBEDDING
        table = of_bytes().embedding_table.float()
        ids = sorted({i for text in self.DOCUMENTS for i in of_bytes().tokenizer(text).input_ids[1:16]})
        assert own.alignment.r_squared(table[ids], table[ids]) > 0.9  # to itself it is the identity, shrunk

    @pytest.mark.parametrize("write", ["embeddings", 2])
    def test_the_small_models_own_states_pass_through_a_map_of_its_own(self, write: Any) -> None:
        own = fit_hand_off(large(), of_bytes(), self.DOCUMENTS, read=0, write=min(write, 1) if write == 2 else write,
                           max_tokens=16, measures_drift=False).to_itself()  # fmt: skip
        assert own is not None
        assert own.alignment is not None
        assert own.read == 0  # never the embedding, however few blocks there are
        assert (own.alignment.d_in, own.alignment.d_out) == (16, 16)

    def test_the_map_goes_from_read_to_write_layer_without_attention_sinks(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []

        def spy(x: torch.Tensor, y: torch.Tensor, **options: Any) -> AffineMap:
            seen.append((x, y, options["groups"]))
            return fit_ridge(x, y, **options)

        monkeypatch.setattr(fitting, "fit_ridge", spy)
        fit_hand_off(large(), small(), self.DOCUMENTS, read=0, write=2, measures_drift=False)
        tokens = pair_tokens(large(), small(), list(self.DOCUMENTS), max_tokens=map_tokens(large(), small()))
        places = zip(tokens.document.tolist(), tokens.sender_position.tolist(), tokens.receiver_position.tolist(),
                     strict=True)  # fmt: skip
        kept = [place for place in places if place[1] > 0 and place[2] > 0]
        assert len(kept) < len(tokens)
        source = capture(large(), tokens.sender, [Site(0)]).values[Site(0)]
        target = capture(small(), tokens.receiver, [Site(2)]).values[Site(2)]
        torch.testing.assert_close(seen[0][0], torch.stack([source[row, at] for row, at, _ in kept]).float())
        torch.testing.assert_close(seen[0][1], torch.stack([target[row, at] for row, _, at in kept]).float())
        assert list(seen[0][2]) == [row for row, _, _ in kept]

    def test_drift_is_small_for_the_models_own_states_and_large_for_others(self) -> None:
        fitted = fit_hand_off(small(), small(), self.DOCUMENTS, read=1, write=1)
        assert fitted.reference is not None
        plain = replace(fitted, alignment=None)
        openings = opened_by(small())
        own = [one.drift for each in continued(plain, small(), openings, (6,)) for one in each]
        far = replace(fitted, alignment=AffineMap(5 * states(32, 32).float(), states(32).float()))
        other = [one.drift for each in continued(far, small(), openings, (6,)) for one in each]
        assert max(own) < min(other)
        assert all(0 <= value <= 1 for value in [*own, *other])

    def test_layers_that_are_none_are_refused_before_anything_is_read(self) -> None:
        with pytest.raises(ValueError, match="layer 9 is outside"):
            fit_hand_off(large(), small(), self.DOCUMENTS, read=9)
        with pytest.raises(ValueError, match="layer 9 is outside"):
            fit_hand_off(large(), small(), self.DOCUMENTS, read=1, write=9)
