"""What a training writes: checkpoints that are its own or refused, and weights that come back bit for bit."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics import assert_same_bits, same_bits
from test_trainer import Noisy, noisy
from tiny import files_in, states

from latentcomm.channels.training.saved import load_weights, save_weights
from latentcomm.channels.training.trainer import Schedule, train


class TestCheckpoints:
    def test_another_shape_or_another_option_is_refused_in_one_sentence(self, tmp_path: Path) -> None:
        train(noisy(), Schedule(steps=4, batch_size=2), checkpoint=tmp_path / "c")
        with pytest.raises(ValueError, match=r"its schedule.steps is 4 and not 5"):
            train(noisy(), Schedule(steps=5, batch_size=2), checkpoint=tmp_path / "c")
        with pytest.raises(ValueError, match=r"its width is 3 and not 4"):
            train(noisy(width=4), Schedule(steps=4, batch_size=2), checkpoint=tmp_path / "c")

        class Wider(Noisy):
            @property
            def configuration(self) -> Mapping[str, Any]:
                return {"what": "noisy", "width": 3}

        wide = noisy(width=4)
        with pytest.raises(ValueError, match=r"another shape: its weight is \[1, 3\], not \[1, 4\]"):
            train(
                Wider(wide.source, wide.target, wide.weight),
                Schedule(steps=4, batch_size=2),
                checkpoint=tmp_path / "c",
            )
        assert_same_bits(wide.weight, torch.zeros(1, 4))  # nothing was loaded on the way

    @pytest.mark.parametrize("damage", [lambda whole: whole[:-40], lambda whole: whole[:-1] + b"\x7f", lambda _: b""])
    def test_a_damaged_one_is_set_aside_and_the_training_starts_anew(
        self, damage: Callable[[bytes], bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        schedule, whole = Schedule(steps=4, batch_size=2, learning_rate=0.05), noisy()
        expected = train(whole, schedule, checkpoint=tmp_path / "c")
        broken = damage((tmp_path / "c").read_bytes())
        (tmp_path / "c").write_bytes(broken)
        again = noisy()
        found = train(again, schedule, checkpoint=tmp_path / "c")
        assert (found.losses, found.resumed_at) == (expected.losses, 0)
        assert_same_bits(again.weight, whole.weight)
        assert (tmp_path / "c.damaged").read_bytes() == broken
        assert "c is damaged" in capsys.readouterr().err
        assert train(noisy(), schedule, checkpoint=tmp_path / "c").resumed_at == 4

    def test_a_file_of_something_else_is_refused_and_stays(self, tmp_path: Path) -> None:
        save_weights(tmp_path / "w", {"a": torch.ones(2)}, kind="map", configuration={})
        with pytest.raises(ValueError, match="no checkpoint"):
            train(noisy(), Schedule(steps=1), checkpoint=tmp_path / "w")
        assert files_in(tmp_path) == ["w"]

    def test_weights_come_back_bit_for_bit_and_of_the_kind_asked_for(self, tmp_path: Path) -> None:
        weights = {"a": states(3, 2), "b": states(2, dtype=torch.float32), "scale": torch.tensor(0.1)}
        save_weights(tmp_path / "w", weights, kind="adapter", configuration={"heads": 2})
        found, configuration = load_weights(tmp_path / "w", kind="adapter")
        assert configuration == {"heads": 2} and found.keys() == weights.keys()
        assert all(same_bits(found[name], weights[name]) for name in found)
        with pytest.raises(ValueError, match="holds adapter and not bridge"):
            load_weights(tmp_path / "w", kind="bridge")
        with pytest.raises(ValueError, match="cannot be read"):
            load_weights(tmp_path / "missing", kind="bridge")
