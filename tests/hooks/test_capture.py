"""Captured activations against TransformerLens' own cache of each prompt alone."""

import errno
import gc
import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics import assert_equal_to_rounding, assert_same_bits, forward_terms
from tiny import BACKENDS, EVERY_MODEL, PAD_ID, block_counter, build, files_in, hooks_left, ids, left_padded, model
from torch import Tensor
from toys import little_memory

from latentcomm._core import records
from latentcomm._core.budget import within
from latentcomm.experiments.cost import flops
from latentcomm.hooks.capture import ActivationStore, capture, capture_positions, capture_to_disk, run_to_deepest
from latentcomm.models import Model, recorded_passes
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import STREAMS, Site

capturing = importlib.import_module("latentcomm.hooks.capture")  # the package's `capture` is the function

ROWS = ids(6, 2, 9, 1, 6, seed=4)
ROWS[1][-1] = PAD_ID
PROMPTS = Prompts.from_ids(ROWS)
LENGTHS = [len(row) for row in ROWS]
NEIGHBOURS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"]


def their_states(model: Model, sites: list[Site]) -> list[dict[Site, Tensor]]:
    """What TransformerLens caches of each prompt alone."""
    out = []
    for row in ROWS:
        options: dict[str, Any] = {} if model.is_bridge else {"attention_mask": torch.ones(1, len(row)).long()}
        with torch.no_grad():
            _, cache = model.hooked.run_with_cache(row[None], **options)
        out.append({site: cache[site.hook_name][0].clone() for site in sites})
    return out


def sites_of(model: Model) -> list[Site]:
    return [
        site for layer in (0, 1, 2) for stream in STREAMS if (site := Site(layer, stream)).hook_name in model.hook_names
    ]


class TestLittleMemory:
    @pytest.mark.parametrize("n_rows", [1, 3])
    def test_batches_that_do_not_fit_give_the_same_states_at_the_same_cost(
        self, n_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tiny, sites = model("llama"), [Site(0), Site(2)]

        def all_captures(folder: Path) -> list[Tensor]:
            whole, at = capture(tiny, PROMPTS, sites), capture_positions(tiny, PROMPTS, sites, -1)
            store = capture_to_disk(tiny, PROMPTS, sites, folder, progress=False)
            return [each for site in sites for each in (whole.rows(site), at[site], store.load(site))]

        with recorded_passes() as passes:
            expected = all_captures(tmp_path / "whole")
        failed = little_memory(monkeypatch, n_rows=n_rows)
        with recorded_passes() as again:
            found = all_captures(tmp_path / "halves")
        assert failed[0] == len(ROWS) and flops(again) == flops(passes) > 0
        for one, other in zip(found, expected, strict=True):
            assert_equal_to_rounding(one, other, terms=forward_terms(tiny))


class TestBudget:
    def test_a_pass_and_a_shard_hold_as_many_tokens_as_the_budget(self, tmp_path: Path) -> None:
        tiny, sites = build("llama"), [Site(0), Site(2)]
        expected = capture(tiny, PROMPTS, sites)
        passes = block_counter(tiny)
        n_bytes = 2 * 32 * 8  # of one row: 2 sites, 32 wide, in float64
        with within(7 * n_bytes):
            found = capture(tiny, PROMPTS, sites)
            store = capture_to_disk(tiny, PROMPTS, sites, tmp_path, progress=False)
        assert passes[0] == 2 * len(ROWS)  # not two prompts fit into a pass
        assert [len(rows) for rows in store.shards(sites[0])] == [8, 9, 7]
        for site in sites:
            assert_equal_to_rounding(found.rows(site), expected.rows(site), terms=forward_terms(tiny))
            assert_equal_to_rounding(store.load(site), expected.rows(site), terms=forward_terms(tiny))

    def test_a_token_of_a_pass_is_counted_by_hand(self) -> None:
        # 8 bytes for 8 vectors of 32, 3 of 64 and the states of 2 sites; 3 * 4 heads' scores of 9 positions
        of_token = 8 * (8 * 32 + 3 * 64 + 2 * 32) + 3 * 4 * 8 * 9
        for n_tokens in (1, 5):
            with within(n_tokens * of_token):
                assert capturing.tokens_per_pass(model("llama"), PROMPTS, 2) == n_tokens
            with within(n_tokens * of_token - 1):
                assert capturing.tokens_per_pass(model("llama"), PROMPTS, 2) == max(1, n_tokens - 1)
        with within(10**12):
            assert capturing.tokens_per_pass(model("llama"), PROMPTS, 2) == capturing.TOKENS_PER_BATCH


class TestInMemory:
    @pytest.mark.parametrize(("architecture", "backend"), EVERY_MODEL)
    @pytest.mark.parametrize("padding", ["right", "left"])
    def test_each_prompt_has_the_states_that_it_has_alone(self, architecture: str, backend: str, padding: str) -> None:
        tiny = model(architecture, backend)
        sites = sites_of(tiny)
        assert len(sites) == (12 if architecture == "neox" else 15)
        found = capture(tiny, PROMPTS if padding == "right" else left_padded(ROWS), sites)
        expected = their_states(tiny, sites)
        for site in sites:
            rows = torch.cat([states[site] for states in expected])
            last = torch.stack([states[site][-1] for states in expected])
            assert_equal_to_rounding(found.rows(site), rows, terms=forward_terms(tiny))
            assert_equal_to_rounding(found.last(site), last, terms=forward_terms(tiny))
        assert hooks_left(tiny) == 0

    def test_a_batch_that_needs_no_padding_is_exact(self) -> None:
        tiny, site = model("llama"), Site(2)
        alone = torch.cat([capture(tiny, Prompts.from_ids([ROWS[n]]), [site]).rows(site) for n in (0, 4)])
        together = capture(tiny, PROMPTS.select([0, 4]), [site]).rows(site)
        assert float((together - alone).abs().max()) < 1e-12

    def test_rows_may_leave_out_each_prompts_first_token(self) -> None:
        found = capture(model("llama"), PROMPTS, [Site(1)])
        every = found.rows(Site(1)).split(LENGTHS)
        assert_same_bits(found.rows(Site(1), skip_first=True), torch.cat([rows[1:] for rows in every]))
        assert len(found.rows(Site(1))) == sum(LENGTHS)

    def test_positions_count_from_either_end_of_the_prompt(self) -> None:
        found = capture(model("llama"), left_padded(ROWS), [Site(1)])
        every = found.rows(Site(1)).split(LENGTHS)
        for places in ([0, 1, 8, 0, 3], [-6, -1, -2, -1, 5]):
            expected = torch.stack([rows[place] for rows, place in zip(every, places, strict=True)])
            assert_same_bits(found.at(Site(1), torch.tensor(places)), expected)
        for places in ([0, 2, 0, 0, 0], [-7, 0, 0, 0, 0]):
            with pytest.raises(
                ValueError, match=r"positions \[.*\] are not all inside prompts of \[6, 2, 9, 1, 6\] tok"
            ):
                found.at(Site(1), torch.tensor(places))

    @pytest.mark.parametrize("batch_tokens", [1, 12, 20])
    def test_batches_are_bounded_and_change_nothing(self, batch_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
        tiny, sizes, run = model("gpt2"), [], run_to_deepest
        whole = capture(tiny, PROMPTS, [Site(2)])

        def counted(model: Model, tokens: Tensor, points: Any, **options: Any) -> Any:
            sizes.append(tokens.numel())
            return run(model, tokens, points, **options)

        monkeypatch.setattr(capturing, "run_to_deepest", counted)
        parts = capture(tiny, PROMPTS, [Site(2)], batch_tokens=batch_tokens)
        assert max(sizes) <= max(batch_tokens, 9)  # a longer prompt runs alone
        assert len(sizes) == {1: 5, 12: 3, 20: 2}[batch_tokens]
        assert_equal_to_rounding(parts.rows(Site(2)), whole.rows(Site(2)), terms=forward_terms(tiny))

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("position", [0, -1])
    def test_one_position_of_each_prompt_alone(self, backend: str, position: int) -> None:
        tiny, sites = model("llama", backend), [Site(0), Site(2, "attn_out")]
        for prompts in (PROMPTS, left_padded(ROWS)):
            found = capture_positions(tiny, prompts, sites, position, batch_tokens=12)
            for site in sites:
                alone = torch.stack([states[site][position] for states in their_states(tiny, sites)])
                assert_equal_to_rounding(found[site], alone, terms=forward_terms(tiny))
        for outside in (1, -2):
            with pytest.raises(ValueError, match=f"position {outside} is outside prompt 3, which has 1 tokens"):
                capture_positions(tiny, PROMPTS, sites, outside)
        with pytest.raises(ValueError, match="name at least one site to capture"):
            capture_positions(tiny, PROMPTS, [], -1)
        with pytest.raises(ValueError, match="layer 3 is outside tiny-llama"):
            capture_positions(tiny, PROMPTS, [Site(3)], -1)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_the_model_stops_after_the_deepest_site_and_is_as_before(self, backend: str) -> None:
        tiny = build("llama", backend)
        before, seen = tiny.forward(ROWS[0][None]), block_counter(tiny)
        capture(tiny, PROMPTS, [Site(1, "attn_out"), Site(0)])
        assert seen == [1, 1, 0]
        assert hooks_left(tiny) == 0
        assert_same_bits(tiny.forward(ROWS[0][None]), before)

    def test_two_names_of_one_place_do_not_share_memory(self) -> None:
        seen = run_to_deepest(model("llama"), ROWS[0][None], NEIGHBOURS)
        below, above = (seen[point] for point in NEIGHBOURS)
        assert_same_bits(below, above)
        assert below.data_ptr() != above.data_ptr()

    def test_it_sees_what_other_hooks_wrote(self) -> None:
        tiny = model("llama")

        def silence(value: Tensor, hook: Any) -> Tensor:
            return torch.zeros_like(value)

        hooks = [("blocks.0.hook_resid_post", silence)]
        seen = run_to_deepest(tiny, ROWS[0][None], NEIGHBOURS, hooks=hooks)
        assert not any(seen[point].any() for point in NEIGHBOURS)

    def test_no_site_or_one_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(ValueError, match="name at least one site to capture"):
            capture(model("llama"), PROMPTS, [])
        with pytest.raises(ValueError, match="layer 3 is outside tiny-llama, whose layers are 0 to 2"):
            capture(model("llama"), PROMPTS, [Site(0), Site(3)])
        with pytest.raises(
            ValueError, match=r"tiny-neox has no hook point blocks\.1\.hook_resid_mid; its blocks do not"
        ):
            capture(model("neox"), PROMPTS, [Site(1, "resid_mid")])
        with pytest.raises(
            ValueError, match=r"blocks\.1\.hook_mlp_out was not captured; captured: blocks\.0\.hook_resid_post"
        ):
            capture(model("llama"), PROMPTS, [Site(0)]).rows(Site(1, "mlp_out"))


SITES = [Site(0), Site(2, "mlp_out")]


class TestOnDisk:
    def stored(self, folder: Path, **changes: Any) -> ActivationStore:
        given: dict[str, Any] = {"model": model("llama"), "prompts": PROMPTS, "sites": SITES} | changes
        positional = [given.pop(name) for name in ("model", "prompts", "sites")]
        return capture_to_disk(*positional, folder, **({"progress": False, "rows_per_shard": 7} | given))

    @pytest.mark.parametrize("options", [{}, {"skip_first": True}, {"last_only": True}], ids=str)
    def test_it_holds_what_capture_holds(self, tmp_path: Path, options: dict[str, bool]) -> None:
        store = self.stored(tmp_path, **options)
        found = capture(model("llama"), PROMPTS, SITES)
        keep = [
            (number, place)
            for number, length in enumerate(LENGTHS)
            for place in range(length)
            if (place > 0 or not options.get("skip_first")) and (place == length - 1 or not options.get("last_only"))
        ]
        for site in SITES:
            every = found.rows(site).split(LENGTHS)
            expected = torch.stack([every[number][place] for number, place in keep])
            assert_equal_to_rounding(store.load(site), expected, terms=forward_terms(model("llama")))
            assert store.load(site).dtype == torch.float64
        assert store.prompt_of_row().tolist() == [number for number, _ in keep]
        assert store.position_of_row().tolist() == [place for _, place in keep]
        again = ActivationStore.open(tmp_path)
        assert_same_bits(again.load(SITES[1]), store.load(SITES[1]))
        assert again.manifest == store.manifest

    def test_padding_on_the_left_is_never_kept(self, tmp_path: Path) -> None:
        left = self.stored(tmp_path / "left", prompts=left_padded(ROWS))
        right = self.stored(tmp_path / "right")
        assert_same_bits(left.load(Site(0)), right.load(Site(0)))
        assert_same_bits(left.position_of_row(), right.position_of_row())

    @pytest.mark.parametrize(
        ("rows_per_shard", "sizes"), [(1, [6, 2, 9, 1, 6]), (7, [8, 9, 7]), (9, [17, 7]), (99, [24])]
    )
    def test_a_shard_is_as_many_whole_prompts_as_fill_it(
        self, tmp_path: Path, rows_per_shard: int, sizes: list[int]
    ) -> None:
        store = self.stored(tmp_path, rows_per_shard=rows_per_shard)
        assert [len(rows) for rows in store.shards(Site(0))] == sizes
        assert len(files_in(tmp_path)) == len(sizes) + 1

    def test_prompts_of_one_token_may_leave_no_rows(self, tmp_path: Path) -> None:
        store = self.stored(tmp_path, prompts=Prompts.from_ids([[9], [8]]), skip_first=True)
        assert store.load(Site(0)).shape == (0, 32)

    def test_an_interrupted_capture_goes_on_behind_the_last_whole_shard(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = self.stored(tmp_path / "whole")
        run, runs = run_to_deepest, []

        def interrupted(*given: Any, **options: Any) -> Any:
            runs.append(0)
            if len(runs) == 2:
                raise KeyboardInterrupt
            return run(*given, **options)

        with monkeypatch.context() as patch:
            patch.setattr(capturing, "run_to_deepest", interrupted)
            with pytest.raises(KeyboardInterrupt):
                self.stored(tmp_path / "part")
        assert files_in(tmp_path / "part") == ["manifest.json", "shard-00000.safetensors"]
        with pytest.raises(ValueError, match=r"part lacks 2 of its shards; run the same capture again to resume"):
            ActivationStore.open(tmp_path / "part")
        monkeypatch.setattr(
            capturing, "run_to_deepest", lambda *given, **options: runs.append(1) or run(*given, **options)
        )
        resumed = self.stored(tmp_path / "part")
        assert runs == [0, 0, 1, 1]
        for site in SITES:
            assert_same_bits(resumed.load(site), whole.load(site))
        self.stored(tmp_path / "part")
        assert runs == [0, 0, 1, 1]  # all is there: nothing ran

    def test_parts_capture_their_own_shards_of_the_undivided_store(self, tmp_path: Path) -> None:
        whole, made = self.stored(tmp_path / "whole"), []
        for part in ("2/2", "1/2"):
            before = set(files_in(tmp_path / "parts")) if made else set()
            self.stored(tmp_path / "parts", part=part)
            made.append(sorted(set(files_in(tmp_path / "parts")) - before))
        assert made[0] == ["manifest.json", "shard-00001.safetensors"]
        assert made[1] == ["shard-00000.safetensors", "shard-00002.safetensors"]
        parts = ActivationStore.open(tmp_path / "parts")
        assert parts.manifest == whole.manifest and files_in(whole.folder) == files_in(parts.folder)
        for site in SITES:
            assert_same_bits(parts.load(site), whole.load(site))
        assert_same_bits(parts.prompt_of_row(), whole.prompt_of_row())
        with pytest.raises(ValueError, match="part is 3/2; give a part from 1/2 to 2/2"):
            self.stored(tmp_path / "none", part="3/2")
        assert not (tmp_path / "none").exists()

    def test_a_part_that_begins_at_once_leaves_the_others_shards(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read = capturing.read_whole

        def late(path: Path, how: Any) -> Any:  # the other part writes manifest and shard just before this one reads
            monkeypatch.setattr(capturing, "read_whole", read)
            found = read(path, how)
            self.stored(tmp_path, part="1/3")
            return found

        monkeypatch.setattr(capturing, "read_whole", late)
        self.stored(tmp_path, part="2/3")
        assert files_in(tmp_path) == ["manifest.json", "shard-00000.safetensors", "shard-00001.safetensors"]

    def test_a_damaged_shard_is_set_aside_and_captured_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        whole, run, runs = self.stored(tmp_path / "whole"), run_to_deepest, []
        part = self.stored(tmp_path / "part")
        part.shard_path(1).write_bytes(part.shard_path(1).read_bytes()[:-8])
        monkeypatch.setattr(capturing, "run_to_deepest", lambda *given, **how: runs.append(1) or run(*given, **how))
        assert_same_bits(self.stored(tmp_path / "part").load(SITES[1]), whole.load(SITES[1]))
        assert runs == [1]
        assert "shard-00001.safetensors is damaged" in capsys.readouterr().err
        assert "shard-00001.safetensors.damaged" in files_in(tmp_path / "part")
        (tmp_path / "part" / "manifest.json").write_text('{"model"')  # of what the shards are is not known any more
        assert_same_bits(self.stored(tmp_path / "part").load(SITES[1]), whole.load(SITES[1]))
        assert runs == [1, 1, 1, 1]

    def test_a_full_disk_says_so_and_keeps_what_is_whole(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole, replace, calls = self.stored(tmp_path / "whole"), os.replace, []

        def full_at_the_third(*given: Any) -> None:
            calls.append(0)
            if len(calls) == 3:  # the manifest, the first shard, the second
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            replace(*given)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full_at_the_third)
            with pytest.raises(
                RuntimeError, match=r"shard-00001\.safetensors could not be written \(No space left on dev"
            ):
                self.stored(tmp_path / "part")
        assert files_in(tmp_path / "part") == ["manifest.json", "shard-00000.safetensors"]
        assert_same_bits(self.stored(tmp_path / "part").load(Site(0)), whole.load(Site(0)))

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"sites": [Site(0)]}, "sites"),
            ({"sites": SITES[::-1]}, "sites"),
            ({"prompts": PROMPTS.select([0, 1, 2, 3])}, "prompts and shards"),
            ({"prompts": PROMPTS.select([4, 1, 2, 3, 0])}, "prompts"),
            ({"skip_first": True}, "skip_first and shards"),
            ({"last_only": True}, "last_only and shards"),
            ({"rows_per_shard": 99}, "shards"),
            ({"model": ("llama", {"seed": 9})}, "fingerprint"),
            ({"model": ("gpt2", {})}, "model and fingerprint"),
            ({"model": ("llama", {"dtype": torch.float32})}, "fingerprint and dtype"),
        ],
        ids=str,
    )
    def test_a_folder_of_another_capture_is_refused(self, tmp_path: Path, change: dict[str, Any], named: str) -> None:
        store = self.stored(tmp_path)
        before = store.load(Site(0))
        if "model" in change:
            architecture, options = change["model"]
            change = {"model": model(architecture, **options)}
        with pytest.raises(ValueError, match=f"holds a capture that differs in {named}; choose another folder"):
            self.stored(tmp_path, **change)
        assert_same_bits(store.load(Site(0)), before)

    def test_memory_is_that_of_one_shard_however_long_the_corpus(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        width = 36  # no other tensor of the test run is as wide
        tiny, save, peaks = model("gpt2", d_model=width), records.write_tensors, []
        held = {id(tensor) for tensor in tiny.hooked.parameters()}

        def weighed(path: Path, tensors: dict[str, Tensor]) -> None:
            alive = [one for one in gc.get_objects() if type(one) is Tensor and one.ndim > 1 and one.shape[-1] == width]
            peaks.append(sum(one.numel() for one in alive if id(one) not in held) / width)
            save(path, tensors)

        monkeypatch.setattr(records, "write_tensors", weighed)
        prompts = Prompts.from_ids(ids(*[8] * 40))
        self.stored(tmp_path, model=tiny, prompts=prompts, rows_per_shard=16, batch_tokens=16)
        assert len(peaks) == 20
        assert min(peaks) >= 2 * 16  # two sites of 16 rows, and not 320
        assert max(peaks) == min(peaks[1:]) <= 3 * 2 * 16

    def test_what_cannot_be_captured_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="name at least one site to capture"):
            self.stored(tmp_path, sites=[])
        with pytest.raises(ValueError, match="layer 7 is outside tiny-llama, whose layers are 0 to 2"):
            self.stored(tmp_path, sites=[Site(7)])
        with pytest.raises(ValueError, match="rows_per_shard is 0; it must be at least 1"):
            self.stored(tmp_path, rows_per_shard=0)
        with pytest.raises(ValueError, match="holds no captured activations"):
            ActivationStore.open(tmp_path)
        assert files_in(tmp_path) == []
        with pytest.raises(ValueError, match=r"blocks\.1\.hook_resid_post was not captured; captured: blocks\.0\.hook"):
            self.stored(tmp_path).load(Site(1))

    def test_the_manifest_says_what_was_captured(self, tmp_path: Path) -> None:
        tiny = model("llama")
        self.stored(tmp_path)
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        assert manifest["model"] == "tiny-llama"
        assert manifest["fingerprint"] == tiny.fingerprint
        assert manifest["sites"] == ["blocks.0.hook_resid_post", "blocks.2.hook_mlp_out"]
        assert manifest["shards"] == [[0, 2], [2, 3], [3, 5]]

    def test_a_progress_line_says_how_far_it_is(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.stored(tmp_path, progress=True)
        assert "capture: 3 of 3 done" in capfd.readouterr().err
        self.stored(tmp_path, progress=False)
        assert capfd.readouterr().err == ""
