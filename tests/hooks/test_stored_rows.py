"""Rows that stay in the files of a capture give what the same rows in memory give, a layer or a block at a time."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics import assert_equal_to_rounding, assert_same_bits
from tiny import ids, model
from torch import Tensor

import latentcomm as lc
from latentcomm._core import arrays
from latentcomm._core.arrays import StoredRows
from latentcomm.alignment import choose_penalty, fit_cca, fit_procrustes, fit_ridge
from latentcomm.drift import fit_drift_reference
from latentcomm.hooks.capture import ActivationStore, capture_to_disk
from latentcomm.hooks.paired_text import capture_paired_to_disk, pair_tokens
from latentcomm.models.prompts import Prompts
from latentcomm.models.sites import Site
from latentcomm.redundancy import fit_predictable, shared_subspace
from latentcomm.similarity import (
    SIMILARITIES,
    LayerPairs,
    MinibatchPairs,
    find_sinks,
    null_maps,
    residual_view,
    shuffled_rows,
)
from latentcomm.similarity.layer_maps import exact

SITES = [Site(layer) for layer in range(3)]
WIDTH, N_ROWS = 32, 30 * 11
PROMPTS = Prompts.from_ids(ids(*[12] * 30))
MAPS = (LayerPairs.linear_cka, LayerPairs.debiased_cka, LayerPairs.linear_predictability)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[ActivationStore, ActivationStore]:
    """The same tokens in two models, in four shards each."""
    folder, options = tmp_path_factory.mktemp("stores"), {"rows_per_shard": 90, "skip_first": True, "progress": False}
    models = (model("llama", dtype=torch.float32), model("llama", seed=1, dtype=torch.float32))
    x, y = (capture_to_disk(each, PROMPTS, SITES, folder / str(n), **options) for n, each in enumerate(models))
    assert len(x.manifest["shards"]) == 4
    return x, y


def sides(stores: tuple[ActivationStore, ActivationStore]) -> tuple[list[StoredRows], list[StoredRows]]:
    x, y = ([store.rows(site) for site in SITES] for store in stores)
    return x, y


def in_memory(side: list[StoredRows]) -> Tensor:
    return torch.stack([layer[:] for layer in side])


def layers_alive(width: int, n_rows: int) -> float:
    """How many layers the tensors of rows of this width that are in memory would make."""
    alive = [one for one in gc.get_objects() if type(one) is Tensor and one.ndim > 1 and one.shape[-1] == width]
    return sum(one.numel() for one in {one.data_ptr(): one for one in alive}.values()) / (width * n_rows)


def watched_reads(monkeypatch: pytest.MonkeyPatch, width: int, n_rows: int) -> list[float]:
    """The layers in memory after each read of rows, less those that are there now."""
    read, before, found = StoredRows.__getitem__, layers_alive(width, n_rows), []

    def watched(rows: StoredRows, at: Any) -> Tensor:
        out = read(rows, at)
        found.append(layers_alive(width, n_rows) - before)
        return out

    monkeypatch.setattr(StoredRows, "__getitem__", watched)
    return found


@pytest.mark.parametrize(
    "at",
    [slice(None), slice(100, 40), slice(80, 200, 7), slice(-3, None), torch.tensor([329, 0, 90, 89, 0]),
     torch.arange(N_ROWS) % 50 == 0, torch.zeros(0, dtype=torch.int64)],
    ids=["all", "none", "every seventh", "the last", "in any order", "a mask", "no number"],
)  # fmt: skip
def test_what_indexing_reads_is_what_a_tensor_gives(
    stores: tuple[ActivationStore, ActivationStore], at: slice | Tensor
) -> None:
    rows, whole = stores[0].rows(Site(2)), torch.cat(list(stores[0].shards(Site(2))))
    assert rows.shape == whole.shape == (N_ROWS, WIDTH) and rows.dtype == whole.dtype
    assert_same_bits(rows[at], whole[at])


@pytest.mark.parametrize("name", SIMILARITIES)
def test_every_similarity_takes_them(stores: tuple[ActivationStore, ActivationStore], name: str) -> None:
    x, y, measure = stores[0].rows(Site(1)), stores[1].rows(Site(2)), SIMILARITIES[name].function
    assert measure(x, y) == measure(x[:], y[:])


@pytest.mark.parametrize(
    "fit",
    [fit_ridge, fit_procrustes, lambda a, b: fit_cca(a, b, rank=4), fit_predictable],
    ids=["ridge", "procrustes", "cca", "predictable"],
)
def test_every_map_is_fitted_to_them(
    stores: tuple[ActivationStore, ActivationStore], fit: Callable[..., lc.alignment.AffineMap]
) -> None:
    x, y = stores[0].rows(Site(1)), stores[1].rows(Site(2))
    found, expected = fit(x, y), fit(x[:], y[:])
    assert_same_bits(found.weight, expected.weight)
    assert_same_bits(found.bias, expected.bias)
    assert found.r_squared(x, y) == expected.r_squared(x[:], y[:])
    assert_same_bits(found(x), expected(x[:]))


def test_a_reference_and_a_subspace_are_fitted_to_them(stores: tuple[ActivationStore, ActivationStore]) -> None:
    x, y = stores[0].rows(Site(1)), stores[1].rows(Site(1))
    options = {"groups": stores[0].prompt_of_row(), "positions": stores[0].position_of_row()}
    found, expected = (fit_drift_reference(rows, **options) for rows in (x, x[:]))
    for name, part in expected.manifold.tensors().items():
        assert_same_bits(found.manifold.tensors()[name], part)
    assert_same_bits(found.held_out_scores, expected.held_out_scores)
    assert_same_bits(found.mahalanobis(y), expected.mahalanobis(y[:]))
    assert_same_bits(shared_subspace(x, y, rank=2).directions, shared_subspace(x[:], y[:], rank=2).directions)
    groups = stores[0].prompt_of_row()
    assert choose_penalty(x, y, groups=groups) == choose_penalty(x[:], y[:], groups=groups)


@pytest.mark.parametrize("sums", [False, True], ids=["rows", "sums"])
def test_maps_of_layers_stream_in_blocks(
    stores: tuple[ActivationStore, ActivationStore], monkeypatch: pytest.MonkeyPatch, *, sums: bool
) -> None:
    monkeypatch.setattr(exact, "BLOCK_ROWS", 70)
    if sums:
        monkeypatch.setattr(LayerPairs, "_held_limit", lambda _: 100)
    (x, y), groups = sides(stores), stores[0].prompt_of_row()
    whole, blocks = (
        LayerPairs().update(one, other, groups=groups) for one, other in ((in_memory(x), in_memory(y)), (x, y))
    )
    assert blocks.n_rows == whole.n_rows == N_ROWS and (blocks._sums is not None) == sums
    for measured in MAPS:
        torch.testing.assert_close(measured(blocks), measured(whole), atol=1e-10, rtol=0)
    one_side = in_memory(x)
    unnamed = LayerPairs().update(x, x)  # rows in folds by their number in the stream
    torch.testing.assert_close(
        unnamed.linear_predictability(),
        LayerPairs().update(one_side, one_side).linear_predictability(),
        atol=1e-10,
        rtol=0,
    )


def test_minibatches_of_them_are_the_same_bits(stores: tuple[ActivationStore, ActivationStore]) -> None:
    x, y = sides(stores)
    found, expected = (
        MinibatchPairs(batch_rows=40, buffer_rows=80).update(*given) for given in ((x, y), (in_memory(x), in_memory(y)))
    )
    assert_same_bits(found.debiased_cka(), expected.debiased_cka())
    mixed = MinibatchPairs(batch_rows=40, buffer_rows=80).update(x, in_memory(y))
    assert_same_bits(mixed.debiased_cka(), expected.debiased_cka())


def test_views_and_nulls_take_them(stores: tuple[ActivationStore, ActivationStore]) -> None:
    (x, y), position = sides(stores), stores[0].position_of_row()
    found, expected = find_sinks(x, positions=position), find_sinks(in_memory(x), positions=position)
    assert found.keep.tolist() == expected.keep.tolist() and found.medians == expected.medians
    view = residual_view(x, y, positions=position)
    expected_view = residual_view(in_memory(x), in_memory(y), positions=position)
    for layer, other in zip(view.x_layers, expected_view.x_layers, strict=True):
        assert_same_bits(layer, other)
    draws = shuffled_rows(N_ROWS, draws=2)
    nulls = [
        null_maps(
            lambda a, b: LayerPairs(folds=1).update(a, b).linear_cka(), *given, draws, kind="shuffled rows"
        ).values
        for given in ((x, y), (list(in_memory(x)), list(in_memory(y))))
    ]
    assert_same_bits(*nulls)


def test_pairs_of_texts_on_disk_are_layers_of_them(tmp_path: Path) -> None:
    sender, receiver = model("llama", dtype=torch.float32), model("llama", seed=1, dtype=torch.float32)
    tokens = pair_tokens(
        sender, receiver, ["Alice is in Peru.", "The note says Italy.", "Bob is at Oman, the note."] * 9
    )
    states = capture_paired_to_disk(sender, receiver, tokens, tmp_path)
    assert [each.shape for each in states.x] == [states.x.shape[1:]] * 3 == [each.shape for each in states.x[:]]
    x, y = (torch.stack([layer[:] for layer in side]) for side in (states.x, states.y))
    assert_same_bits(states.x[1, torch.tensor([5, 2])], x[1, [5, 2]])
    found, expected = LayerPairs(folds=1).update(states.x, states.y), LayerPairs(folds=1).update(x, y)
    assert_equal_to_rounding(found.debiased_cka(), expected.debiased_cka(), terms=len(tokens) ** 2)
    with pytest.raises(IndexError):
        states.x[3]


# --- what is in memory ---


def test_fits_hold_a_layer_of_each_side(
    stores: tuple[ActivationStore, ActivationStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = sides(stores)
    held = watched_reads(monkeypatch, WIDTH, N_ROWS)
    for one, other in zip(x, y, strict=True):
        fit_ridge(one, other, penalty=1.0)
    assert len(held) == 6 and max(held) <= 2
    held.clear()
    find_sinks(x, positions=torch.ones(N_ROWS, dtype=torch.int64))
    assert len(held) == 3 and max(held) <= 2  # the next is read while the one before is there


@pytest.mark.parametrize("accumulator", [LayerPairs, MinibatchPairs])
def test_maps_of_layers_hold_a_block_of_all_layers(
    stores: tuple[ActivationStore, ActivationStore], monkeypatch: pytest.MonkeyPatch, accumulator: Any
) -> None:
    (x, y), read = sides(stores), StoredRows.__getitem__
    alive: list[weakref.ref[Tensor]] = []
    most = [0]
    monkeypatch.setattr(exact, "BLOCK_ROWS", 10)
    monkeypatch.setattr(LayerPairs, "_held_limit", lambda _: 20)

    def watched(rows: StoredRows, at: Any) -> Tensor:
        out = read(rows, at)
        alive.append(weakref.ref(out))
        most.append(sum(len(one) for one in (each() for each in alive) if one is not None))
        return out

    monkeypatch.setattr(StoredRows, "__getitem__", watched)
    options = {"batch_rows": 10, "buffer_rows": 20} if accumulator is MinibatchPairs else {"folds": 1}
    pairs = accumulator(**options).update(x, y)
    assert len(alive) == 6 * 33 and max(most) <= 2 * 6 * 10  # a block of six layers is read while the last is there
    if accumulator is LayerPairs:
        assert sum(len(fold) for _, _, fold in pairs._held) <= 20


def test_a_shard_is_verified_once_and_no_other_site_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    width = 36  # no other tensor of the test run is as wide
    tiny = model("gpt2", d_model=width, dtype=torch.float32)
    prompts = Prompts.from_ids(ids(*[8] * 40))
    capture_to_disk(tiny, prompts, [Site(layer) for layer in range(3)], tmp_path, rows_per_shard=80, progress=False)
    store, verified = ActivationStore.open(tmp_path), []
    function = lc.hooks.capture.map_tensors
    monkeypatch.setattr(lc.hooks.capture, "map_tensors", lambda path: verified.append(path) or function(path))
    held = watched_reads(monkeypatch, width, 320)
    for _ in range(2):
        for site in (Site(0), Site(2)):
            for rows in store.shards(site):
                assert rows.shape == (80, width)
    assert len(verified) == 4
    assert len(held) == 16 and max(held) <= 2 / 4 + 0.01  # a shard of a site, and the one before it


def test_damage_is_one_sentence(stores: tuple[ActivationStore, ActivationStore], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^blocks\.0\.hook_mlp_out was not captured; captured: blocks\.0\.hook_resid"):
        stores[0].rows(Site(0, "mlp_out"))
    for path in stores[0].folder.iterdir():
        content = bytearray(path.read_bytes())
        if path.name == "shard-00001.safetensors":
            content[-5] ^= 1
        (tmp_path / path.name).write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors does not match its checksum"):
        ActivationStore.open(tmp_path).rows(Site(0))


def test_a_run_of_rows_that_pair_with_none_is_refused(stores: tuple[ActivationStore, ActivationStore]) -> None:
    x, y = sides(stores)
    with pytest.raises(ValueError, match="x has 330 rows but y 329; pair them row by row"):
        LayerPairs().update(x, in_memory(y)[:, :-1])
    with pytest.raises(ValueError, match="2 group labels for 330 rows; give one label a row"):
        LayerPairs().update(x, y, groups=[1, 2])
    pairs = LayerPairs(max_bytes=10)
    with pytest.raises(ValueError, match=r"330 rows take .* GB and the sums of all pairs"):
        pairs.update(x, y)
    assert pairs.n_rows == 0 and arrays.in_memory(x[0]).shape == x[0].shape
