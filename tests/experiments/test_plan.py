"""The estimates of a plan: from configurations alone, against what runs take, and at the speed of another machine."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run
from tiny import build
from torch.utils.flop_counter import FlopCounterMode
from toys import countries_folder

import latentcomm as lc
from latentcomm.experiments import preflight as common
from latentcomm.experiments import run as runs
from latentcomm.experiments._prepared import prepare
from latentcomm.experiments.capacity import free_memory
from latentcomm.experiments.cost import flops
from latentcomm.experiments.job import Job
from latentcomm.models import recorded_passes, shape_of

CELL: dict[str, Any] = {"read_layer": 1, "write_layer": 1}
GPU = 80 * 2**30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return countries_folder(tmp_path_factory.mktemp("models") / "tiny-countries")


@pytest.fixture(scope="module")
def model(folder: Path) -> lc.Model:
    return lc.load_model(folder)


class TestFromTheConfiguration:
    @pytest.fixture
    def alone(self, folder: Path, tmp_path: Path) -> Path:
        """A folder with the configuration and nothing else."""
        (tmp_path / "alone").mkdir()
        shutil.copy(folder / "config.json", tmp_path / "alone")
        return tmp_path / "alone"

    def test_its_sizes_are_those_of_the_weights(self, folder: Path, alone: Path, model: lc.Model) -> None:
        there, absent = shape_of(folder), shape_of(alone)
        assert replace(there, name="", weights_bytes=None) == replace(absent, name="", weights_bytes=None)
        assert absent.n_parameters == sum(each.numel() for each in model.hooked.original_model.parameters())
        assert absent.gated and absent.weights_bytes is None

    def test_feed_forward_layers_without_a_gate_are_known(self, tmp_path: Path) -> None:
        build("gpt2").hooked.original_model.config.save_pretrained(tmp_path)
        assert shape_of(tmp_path).gated is False

    def test_a_plan_needs_neither_weights_nor_tokenizer(self, alone: Path, model: lc.Model) -> None:
        settings = lc.CompareSettings(sender=str(alone), channels=("silent", "replace"), **CELL, n_test=6)
        found = lc.plan(settings)
        assert found.refusals == () and found.memory > 4 * sum(each.numel() for each in model.hooked.parameters())
        assert found.flops > 0 and found.passes > 0 and found.weights_read > 0
        assert "weights" in found.notes[0] and "four characters" in found.notes[1]

    def test_a_configuration_may_be_a_file_of_any_name(self, alone: Path, tmp_path: Path) -> None:
        path = (alone / "config.json").rename(tmp_path / "small.json")
        settings = lc.CompareSettings(sender=str(path), channels=("silent",), n_test=6)
        assert lc.plan(settings).refusals == ()
        with pytest.raises(ValueError, match=r"is a file but not a \.gguf"):
            lc.run(settings)

    def test_a_model_with_weights_needs_its_tokenizer(self, folder: Path, tmp_path: Path) -> None:
        for name in ("config.json", "model.safetensors"):
            shutil.copy(folder / name, tmp_path)
        assert lc.plan(lc.CompareSettings(sender=str(tmp_path), channels=("silent",), n_test=6)).refusals


class TestAgainstRuns:
    """The oracle is what passes record, and what torch dispatches."""

    @pytest.mark.parametrize("channel", ["silent", "skyline", "text", "replace", "kv", "cipher", "deltas", "debate"])
    def test_the_operations_of_a_channel_are_within_15_percent(self, channel: str, model: lc.Model) -> None:
        settings = lc.CompareSettings(channels=(channel,), **CELL, n_test=12)
        with recorded_passes() as passes:
            lc.run(settings, model, model)
        assert lc.plan(settings, model, model, flops=1).flops == pytest.approx(flops(passes), rel=0.15)

    def test_those_of_a_sweep_are_what_torch_multiplies(self, model: lc.Model) -> None:
        settings = lc.SweepSettings(n_tune=6, n_test=6)
        with FlopCounterMode(display=False) as counted:
            lc.run(settings, model, model)
        found = lc.plan(settings, model, model, flops=1)
        assert found.flops == pytest.approx(counted.get_total_flops(), rel=0.15)


class TestStatedMemory:
    def test_the_passes_of_a_sweep_are_those_of_its_pieces(self, model: lc.Model) -> None:
        settings = lc.SweepSettings(n_tune=6, n_test=20, memory="20kB")
        with recorded_passes() as passes:
            lc.run(settings, model, model)
        found, without = (lc.plan(each, model, model) for each in (settings, replace(settings, memory="")))
        n_run = len({id(each) for each in passes})  # what is read once is on record for every condition
        assert found.passes == pytest.approx(n_run, rel=0.1)
        assert found.passes > 5 * without.passes and found.memory < without.memory

    def test_a_comparison_counts_the_items_that_run_together(self, model: lc.Model, tmp_path: Path) -> None:
        settings = lc.CompareSettings(channels=("silent",), n_test=34, memory="50kB")
        planned = prepare(settings, out=None, sender=model).checks.items_at_once
        lc.run(settings, model, out=tmp_path)
        n_pieces = len(list(tmp_path.glob(".latentcomm/*/trials-*/*.json")))
        assert 1 < planned < 32 and n_pieces == -(-34 // planned)

    def test_a_diagnosis_captures_fewer_documents_at_once(self, model: lc.Model) -> None:
        planned, made = [], []
        for memory in ("", "20kB"):
            settings = lc.DiagnoseSettings(documents=24, tokens=16, prompts=2, layers=2, memory=memory)
            with recorded_passes() as passes:
                lc.run(settings, model, model)
            planned.append(lc.plan(settings, model, model).passes)
            made.append(len(passes))
        assert planned[1] - planned[0] == pytest.approx(made[1] - made[0], rel=0.2) and made[1] - made[0] > 10


class TestSpeed:
    SETTINGS = lc.CompareSettings(channels=("silent",), n_test=6)

    def test_the_slowest_of_three_takes_the_time(self, model: lc.Model) -> None:
        slow, reading, fast = (
            lc.plan(self.SETTINGS, model, flops=rate, bandwidth=width)
            for rate, width in ((1e3, 0), (1e18, 1e2), (1e18, 0))
        )
        assert slow.seconds == pytest.approx(slow.flops / 1e3)
        assert reading.seconds == pytest.approx(reading.weights_read / 1e2)
        assert fast.seconds == pytest.approx(1.6e-3 * 3 * fast.passes, rel=0.1)
        assert slow.lines()[-1].startswith("time: at least") and "GFLOP/s" in slow.lines()[-1]

    def test_statistics_are_no_part_of_the_time_of_another_machine(self, model: lc.Model) -> None:
        found = lc.plan(lc.DiagnoseSettings(documents=24, tokens=8, prompts=2, layers=1), model, flops=1e3)
        assert found.statistics > 0 and found.seconds == pytest.approx(found.flops / 1e3)
        assert "of statistics in float64" in "".join(found.lines()) and found.lines()[-1].endswith("on its CPU")

    def test_another_machine_has_its_own_devices_and_memory(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(common, "free_memory", lambda _: 1)
        settings = replace(self.SETTINGS, sender=str(folder), device="cuda")
        here, there = lc.plan(settings), lc.plan(settings, flops=1e15)
        assert here.refusals and there.refusals == ()
        assert there.free_memory is None and there.host_memory > 0

    @pytest.mark.parametrize(
        ("flops", "bandwidth", "sentence"), [(-1.0, 0.0, r"flops is -1\.0"), (0.0, 1e9, "flops is not given")]
    )
    def test_a_speed_that_is_none_is_refused(self, flops: float, bandwidth: float, sentence: str) -> None:
        with pytest.raises(ValueError, match=sentence):
            lc.plan(self.SETTINGS, flops=flops, bandwidth=bandwidth)

    def test_a_command_takes_a_speed_for_a_dry_run_alone(self, folder: Path, tmp_path: Path) -> None:
        options = ("--sender", folder, "--channels", "silent", "--n-test", "6", "--out", tmp_path, "--flops", "1e15")
        found = run("compare", *options, "--dry-run")
        assert found.exit_code == 0 and "at 1 PFLOP/s" in found.stdout
        refused = run("compare", *options)
        assert refused.exit_code == 1 and "give --dry-run too" in refused.stderr

    def test_one_report_has_two_names(self) -> None:
        assert lc.preflight is lc.plan is runs.plan


class TestPlacement:
    SETTINGS = lc.CompareSettings(channels=("silent",), n_test=6)

    def test_the_defaults_are_no_part_of_a_key(self) -> None:
        assert {"device_map", "quantization", "one_at_a_time"}.isdisjoint(self.SETTINGS.decisive())
        placed = replace(self.SETTINGS, device_map="auto", quantization="4bit").decisive()
        assert placed["quantization"] == "4bit" and "device_map" not in placed

    @pytest.mark.parametrize("in_turn", [False, True])
    def test_they_are_passed_to_what_loads_a_model(
        self, in_turn: bool, model: lc.Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[dict[str, Any]] = []

        def load(name: str, **options: Any) -> lc.Model:
            seen.append(options)
            return model

        monkeypatch.setattr("latentcomm.experiments.job.models.load_model", load)
        monkeypatch.setattr("latentcomm.experiments.job.outlined", lambda *_, **__: None)  # known only by loading
        settings = replace(self.SETTINGS, device="auto", device_map="auto", quantization="8bit", one_at_a_time=in_turn)
        Job().pair(settings)
        Job().pair(replace(self.SETTINGS, one_at_a_time=in_turn))
        assert seen == [
            {"dtype": "float32", "device": None, "device_map": "auto", "quantization": "8bit"},
            {"dtype": "float32", "device": "cpu"},
        ]

    def test_one_device_and_a_map_of_all_are_refused(self, folder: Path) -> None:
        settings = replace(self.SETTINGS, sender=str(folder), device_map="auto")
        (refusal,) = lc.plan(settings).refusals
        assert refusal.startswith("device_map is auto, and device is cpu, which is one alone")
        assert lc.plan(replace(settings, device="auto")).refusals == ()

    def test_mps_and_training_have_no_quantization(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        training = lc.TrainSettings(sender=str(folder), channels=("gated",), **CELL, quantization="8bit")
        assert any("what is trained needs weights of float32" in each for each in lc.plan(training, flops=1).refusals)
        monkeypatch.setattr(common.models, "resolve_device", lambda _: "mps")
        monkeypatch.setattr(common, "_rate", lambda *_: 1e9)
        settings = replace(self.SETTINGS, sender=str(folder), device="mps", quantization="4bit")
        (refusal,) = lc.plan(settings).refusals
        assert refusal.startswith("quantization is 4bit, and MPS has none")

    @pytest.mark.parametrize(("quantization", "n_bytes"), [("8bit", 1), ("4bit", 0.5)])
    def test_matrices_of_blocks_are_counted_in_their_own_bytes(
        self, quantization: Any, n_bytes: float, folder: Path, model: lc.Model
    ) -> None:
        checks = common.Checks(replace(self.SETTINGS, quantization=quantization), Job(), elsewhere=True)
        checks.weights(checks.named(str(folder)))
        weights = dict(model.hooked.original_model.named_parameters())
        blocks = sum(each.numel() for name, each in weights.items() if "layers." in name and each.ndim == 2)
        rest = sum(each.numel() for each in weights.values()) - blocks
        assert checks.on_device["weights"] == n_bytes * blocks + 4 * rest

    def test_a_map_of_all_has_the_memory_of_all_gpus(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (GPU - int(device), GPU))
        assert free_memory("gpus") == 2 * GPU - 1
        monkeypatch.setattr(common, "_rate", lambda *_: 1e9)
        large = replace(shape_of(folder), n_parameters=50 * 2**30, n_in_blocks=0)
        monkeypatch.setattr(common.models, "shape_of", lambda _: large)
        settings = replace(self.SETTINGS, sender=str(folder), device="cuda", device_map="auto")
        (refusal,) = [each for each in lc.plan(settings).refusals if "host" not in each]
        assert "of memory on 2 GPUs (weights 200.0 GB" in refusal and "40.0 GB are missing" in refusal


def test_the_table_of_large_pairs_is_what_the_benchmark_planned() -> None:
    root = Path(__file__).resolve().parents[2]
    found = json.loads((root / "benchmarks" / "cost_model.json").read_text("utf-8"))
    page = (root / "docs" / "scale.md").read_text("utf-8")
    for row in found["checked"]:
        line = f"| {row['model']} | {row['command']} |"
        assert line in page and f" {row['ratio']:.2f} " in next(each for each in page.splitlines() if line in each)
        assert abs(row["ratio"] - 1) <= 0.15, row
    for row in found["planned"]:
        line = next(
            each for each in page.splitlines() if f"| {row['sender']} to {row['receiver']} | {row['command']} |" in each
        )
        assert f" {row['flops'] / 1e15:,.2f} " in line and f" {row['hours']:,.3f} " in line
