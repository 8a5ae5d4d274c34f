"""A model on a GPU gives the numbers of the CPU up to rounding: on one GPU, over two, and where its memory is short."""

from pathlib import Path

import pytest
import torch
from numerics import assert_equal_to_rounding, assert_same_bits, forward_terms
from tiny import ids
from toys import countries_folder

import latentcomm as lc
from latentcomm.fusion import Replace
from latentcomm.models import in_halves
from latentcomm.models.prompts import Prompts

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
DEVICE = "cuda"
TOKENS = torch.stack(ids(9, 9, seed=3))
PROMPTS = Prompts.from_ids([each.tolist() for each in ids(5, 9, 7, seed=4)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return countries_folder(tmp_path_factory.mktemp("models") / "tiny", d_model=32)


@pytest.fixture(scope="module")
def cpu(folder: Path) -> lc.Model:
    return lc.load_model(folder)


@pytest.fixture(scope="module")
def gpu(folder: Path) -> lc.Model:
    return lc.load_model(folder, device=DEVICE)


def assert_agree(here: torch.Tensor, there: torch.Tensor, model: lc.Model) -> None:
    assert_equal_to_rounding(here.cpu(), there.cpu(), terms=forward_terms(model))


def test_a_model_is_loaded_onto_the_gpu_and_is_the_same_model(cpu: lc.Model, gpu: lc.Model) -> None:
    assert gpu.device.type == DEVICE and all(each.device.type == DEVICE for each in gpu.hooked.parameters())
    assert gpu.fingerprint == cpu.fingerprint
    assert_agree(cpu.forward(TOKENS), gpu.forward(TOKENS), cpu)


def test_states_are_captured_grafted_and_swept_alike(cpu: lc.Model, gpu: lc.Model) -> None:
    site = lc.Site(1)
    here, there = (lc.capture(model, PROMPTS, [site]) for model in (cpu, gpu))
    assert here.values[site].device == there.values[site].device == torch.device("cpu")
    assert_agree(here.rows(site), there.rows(site), cpu)
    graft = lc.Graft(site, 4, here.last(site)[:2], Replace())
    logits = []
    for model in (cpu, gpu):
        with lc.grafted(model, [graft]):
            logits.append(model.forward(TOKENS))
    assert_agree(*logits, cpu)
    sweeps = [lc.sweep_layers(model, model, PROMPTS, PROMPTS, fusion=Replace()) for model in (cpu, gpu)]
    assert_same_bits(sweeps[0].top_token, sweeps[1].top_token)


def test_greedy_replies_are_the_same(cpu: lc.Model, gpu: lc.Model) -> None:
    texts = ["The note says Greece.", "Alice is at the Colosseum."]
    replies = [lc.generate(model, lc.encode(model, texts), max_new_tokens=6) for model in (cpu, gpu)]
    assert replies[0] == replies[1]


def test_fused_attention_agrees_with_eager(folder: Path, gpu: lc.Model) -> None:
    fused = lc.load_model(folder, device=DEVICE, attention="sdpa")
    assert_agree(gpu.forward(TOKENS), fused.forward(TOKENS), gpu)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch sees fewer than two GPUs here")
def test_a_model_over_two_gpus_agrees(folder: Path, cpu: lc.Model) -> None:
    first = ("model.embed_tokens", "model.rotary_emb", "model.layers.0")
    second = ("model.layers.1", "model.layers.2", "model.norm", "lm_head")
    spread = lc.load_model(folder, device_map=dict.fromkeys(first, 0) | dict.fromkeys(second, 1))
    assert (spread.device_of(0), spread.device_of(2)) == (torch.device("cuda:0"), torch.device("cuda:1"))
    assert_agree(cpu.forward(TOKENS), spread.forward(TOKENS), cpu)
    here, there = (lc.capture(model, PROMPTS, [lc.Site(2)]).last(lc.Site(2)) for model in (cpu, spread))
    assert_agree(here, there, cpu)


def test_rows_that_do_not_fit_into_the_memory_of_the_gpu_run_in_halves() -> None:
    torch.cuda.empty_cache()
    n_bytes = int(0.6 * torch.cuda.mem_get_info()[0])  # of a row: two do not fit
    tried: list[int] = []

    def run(rows: range) -> int:
        tried.append(len(rows))
        return torch.empty(len(rows), n_bytes, dtype=torch.uint8, device=DEVICE).shape[0]

    assert in_halves(run, range(2), "a test on a GPU") == [1, 1] and tried == [2, 1, 1]
    torch.cuda.empty_cache()
