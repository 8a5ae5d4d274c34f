import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from numerics import assert_equal_to_rounding, assert_same_bits
from PIL import Image
from safetensors.torch import load_file, save_file
from seeing import KINDS, TO_16, encoder, noise, sender

from latentcomm.experiments.crossmodal import (
    IMAGENET,
    Preprocessing,
    VisionSite,
    load_vision,
    read_picture,
    read_pictures,
)

PICTURES = [noise(seed) for seed in range(5)]
TERMS = 3 * 4 * 4 + 3 * (9 * 16 + 17)  # numbers of a patch, and in each block the width nine times and all tokens
CONFIGS = {
    "plain": {"do_resize": True, "size": {"height": 16, "width": 24}, "resample": 2,
              "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
              "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]},
    "not normalised": {"do_resize": True, "size": {"height": 9, "width": 7}, "resample": 3, "do_normalize": False},
    "not resized": {"do_resize": False, "do_rescale": True, "do_normalize": True,
                    "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
}  # fmt: skip


def processed_by_transformers(pictures: list[Image.Image], facts: dict[str, Any], kind: str = "vit") -> torch.Tensor:
    if kind == "clip":
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as Processor
    else:
        from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil as Processor
    return torch.from_numpy(np.asarray(Processor(**facts)(pictures, return_tensors="np")["pixel_values"]))


@pytest.mark.parametrize("name", CONFIGS)
def test_pixels_are_those_of_the_processor_that_needs_no_torchvision(name: str) -> None:
    expected = processed_by_transformers(PICTURES, CONFIGS[name])
    assert torch.allclose(Preprocessing.of(CONFIGS[name])(PICTURES), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(Preprocessing.of(CONFIGS[name])(PICTURES[::-1]), expected, atol=1e-2)


@pytest.mark.parametrize("picture", [noise(0, 61, 40), noise(1, 40, 61), noise(2, 50, 50), noise(3, 33, 97)])
def test_the_shorter_edge_and_the_middle_are_cut_as_clips_processor_does(picture: Image.Image) -> None:
    facts = {"do_resize": True, "size": {"shortest_edge": 32}, "resample": 3, "do_center_crop": True,
             "crop_size": {"height": 24, "width": 24}, "do_rescale": True, "rescale_factor": 1 / 255,
             "do_normalize": True, "image_mean": [0.48, 0.45, 0.4], "image_std": [0.26, 0.26, 0.27],
             "do_convert_rgb": True}  # fmt: skip
    expected = processed_by_transformers([picture], facts, "clip")
    assert torch.allclose(Preprocessing.of(facts)([picture]), expected, rtol=0, atol=1e-6)
    bilinear = Preprocessing.of(facts | {"resample": 2})([picture])
    assert not torch.allclose(bilinear, expected, atol=1e-2)


@pytest.mark.parametrize(("kind", "edges"), [("vit", (24, 24)), ("clip", (24, 24))])
def test_a_size_of_one_number_is_read_as_the_files_processor_reads_it(kind: str, edges: tuple[int, int]) -> None:
    old = {"size": 24, "crop_size": 24, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    named = {
        "vit": {"feature_extractor_type": "ViTFeatureExtractor"},
        "clip": {"image_processor_type": "CLIPImageProcessor"},
    }
    facts = old if kind == "clip" else {key: value for key, value in old.items() if key != "crop_size"}
    pictures = [noise(0, 61, 40), noise(1, 40, 61)]
    expected = processed_by_transformers(pictures, facts, kind)
    found = Preprocessing.of(facts | named[kind])
    assert tuple(expected.shape[2:]) == edges and torch.allclose(found(pictures), expected, rtol=0, atol=1e-6)
    other = Preprocessing.of(facts | named["clip" if kind == "vit" else "vit"])
    assert other != found  # the class is what decides
    with pytest.raises(ValueError, match="both edges or the shorter one, and it names no processor"):
        Preprocessing.of({"size": 24, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    assert Preprocessing.of(old | {"do_center_crop": True}).size == 24


@pytest.mark.parametrize(("kind", "name"), [("vit", "ViTImageProcessor"), ("clip", "CLIPImageProcessorFast")])
def test_what_a_file_does_not_say_its_processor_does_and_nobody_else(kind: str, name: str) -> None:
    pictures = [noise(0, 300, 260)]
    found = Preprocessing.of({"image_processor_type": name})
    assert torch.allclose(found(pictures), processed_by_transformers(pictures, {}, kind), rtol=0, atol=1e-6)
    for named in ({}, {"image_processor_type": "StrangeImageProcessor"}):
        with pytest.raises(ValueError, match="no stated image_mean and image_std, and it"):
            Preprocessing.of({"size": {"height": 8, "width": 8}} | named)
        assert Preprocessing.of({"size": {"height": 8, "width": 8}, "do_normalize": False} | named).mean == ()


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    for each in (IMAGENET, TO_16, Preprocessing(mean=(0.1,) * 3, std=(0.2,) * 3), Preprocessing(size=7)):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(each.written()))
        assert Preprocessing.read(tmp_path) == each


@pytest.mark.parametrize(
    ("options", "why"),
    [({"size": 0}, "whole numbers of pixels"), ({"resample": 9}, "number of a filter"),
     ({"mean": (0.5,) * 3, "std": (0.0,) * 3}, "no std of 0")],
)  # fmt: skip
def test_a_preprocessing_that_cannot_be_done_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Preprocessing(**options)


def test_pictures_of_unequal_sizes_and_impossible_crops_are_refused() -> None:
    with pytest.raises(ValueError, match="no resizing makes them equal"):
        Preprocessing()([noise(0, 8, 8), noise(1, 9, 8)])
    with pytest.raises(ValueError, match="smaller than the crop of 30 x 30"):
        Preprocessing(crop=(30, 30))([noise(0)])
    with pytest.raises(ValueError, match="is not one of height and width"):
        Preprocessing.of({"size": {"longest_edge": 8}})


def test_an_unreadable_picture_is_reported_and_skipped_only_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad, cut = tmp_path / "good.png", tmp_path / "bad.png", tmp_path / "cut.png"
    noise(0, 40, 40).save(good)
    bad.write_text("no picture")
    cut.write_bytes(good.read_bytes()[:600])
    for path in (bad, cut, tmp_path / "missing.png"):
        with pytest.raises(ValueError, match=f"{path.name} cannot be read"):
            read_pictures([good, path])
        assert list(read_pictures([good, path], skip_unreadable=True)) == [good]
        assert path.name in capsys.readouterr().err
    with pytest.raises(ValueError, match="none of 1 pictures"):
        read_pictures([bad], skip_unreadable=True)


def test_transparency_lies_on_white_and_grey_becomes_three_channels() -> None:
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert read_picture(half).getpixel((0, 0)) == (127, 127, 127)
    grey = noise(0, mode="L")
    assert np.asarray(read_picture(grey)).tolist() == np.stack([np.asarray(grey)] * 3, -1).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_the_hidden_states_of_transformers_after_every_block(kind: str) -> None:
    model = sender(kind)
    pixels = TO_16(PICTURES)
    with torch.no_grad():
        hidden = model.encoder(pixel_values=pixels, output_hidden_states=True).hidden_states
    found = model.states(PICTURES)
    n_class = kind != "siglip"
    assert found.values.shape == (3, 5, 16 + n_class, 16)
    assert found.tokens == ("class",) * n_class + ("patch",) * 16
    for block in range(2):  # the last of transformers' own may have passed the final norm
        assert torch.allclose(found.values[block], hidden[block + 1], atol=1e-6)
    assert not torch.allclose(found.values[0], found.values[1], atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_block_is_read_before_the_final_norm(kind: str) -> None:
    model = sender(kind)
    found = model.states(PICTURES, blocks=[2]).values[0]
    names = ("layernorm", "post_layernorm", "vision_model.post_layernorm")
    norm = next(each for name, each in model.encoder.named_modules() if name in names)
    with torch.no_grad():
        out = model.encoder(pixel_values=TO_16(PICTURES))
        normed = norm(found)
    expected = out.pooler_output if kind == "clip" else out.last_hidden_state
    assert torch.allclose(normed[:, 0] if kind == "clip" else normed, expected, atol=1e-5)


def test_pictures_together_equal_each_alone_and_later_blocks_do_not_run() -> None:
    model = sender()
    together = model.read(PICTURES * 5, VisionSite(1))
    alone = torch.cat([model.read([each], VisionSite(1)) for each in PICTURES])
    assert torch.allclose(together[:5], alone, atol=1e-5)
    assert torch.allclose(together[20:], alone, atol=1e-5)
    ran: list[int] = []
    handles = [block.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, block in enumerate(model.blocks)]
    model.read(PICTURES, VisionSite(0))
    for handle in handles:
        handle.remove()
    assert ran == [0]
    assert not any(block._forward_hooks for block in model.blocks)


def test_cells_are_means_of_their_patches_row_by_row() -> None:
    found = sender().states(PICTURES[:2])
    cells = found.pooled("patches", 2).reshape(3, 2, 4, 16)
    patches = found.patches().reshape(3, 2, 4, 4, 16)
    by_hand = torch.stack([patches[:, :, :2, :2], patches[:, :, :2, 2:], patches[:, :, 2:, :2], patches[:, :, 2:, 2:]])
    assert torch.allclose(cells, by_hand.mean((3, 4)).permute(1, 2, 0, 3), atol=1e-5)
    assert torch.allclose(found.pooled("patches"), found.patches().mean(2), atol=1e-5)
    assert_same_bits(found.pooled("class"), found.values[:, :, 0])
    thirds = found.pooled("patches", 3).reshape(3, 2, 3, 3, 16)  # of four patches a side: the middle cell shares some
    assert torch.allclose(thirds[:, :, 0, 1], patches[:, :, :2, 1:3].mean((2, 3)), atol=1e-5)
    assert torch.allclose(thirds[:, :, 2, 2], patches[:, :, 2:, 2:].mean((2, 3)), atol=1e-5)
    for grid in (0, 5):
        with pytest.raises(ValueError, match=f"cannot be cut into {grid} x {grid} cells; give a grid from 1 to 4"):
            found.pooled("patches", grid)
    with pytest.raises(ValueError, match="no class token"):
        sender("siglip").read(PICTURES, VisionSite(0, "class"))


def test_a_size_that_an_encoder_cannot_take_is_refused_or_interpolated() -> None:
    larger = Preprocessing(size=(24, 20))
    with pytest.raises(ValueError, match="takes pictures of 16 x 16 pixels and these come to 20 x 24"):
        sender("vit", preprocessing=larger).states(PICTURES)
    found = sender("dinov2", preprocessing=larger).states(PICTURES)
    assert (found.rows, found.columns, len(found.tokens)) == (6, 5, 31)
    with pytest.raises(ValueError, match="cannot be cut into patches of 4 x 4"):
        sender("dinov2", preprocessing=Preprocessing(size=(18, 16))).states(PICTURES)
    with pytest.raises(ValueError, match="block 3 is outside tiny-vit"):
        sender().states(PICTURES, blocks=[3])
    with pytest.raises(ValueError, match="no picture"):
        sender().states([])


def test_the_fingerprint_depends_on_weights_and_preprocessing() -> None:
    assert sender().fingerprint == sender().fingerprint
    others = [sender(seed=1), sender(preprocessing=IMAGENET), sender().randomised(), sender().randomised(seed=1)]
    assert len({each.fingerprint for each in (sender(), *others)}) == 5
    assert sender().randomised().fingerprint == sender().randomised().fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_gives_the_same_states(kind: str, tmp_path: Path) -> None:
    encoder(kind).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="give preprocessing="):
        load_vision(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(TO_16.written()))
    loaded = load_vision(tmp_path)
    assert loaded.name == tmp_path.name
    assert loaded.fingerprint == sender(kind).fingerprint
    # transformers leaves the weights where they lie in the file, whatever the alignment
    assert_equal_to_rounding(loaded.states(PICTURES).values, sender(kind).states(PICTURES).values, terms=TERMS)
    rough = load_vision(tmp_path, dtype="bfloat16").states(PICTURES).values
    assert rough.dtype == torch.bfloat16
    assert torch.allclose(rough.float(), loaded.states(PICTURES).values, atol=0.3)


def test_the_tower_that_sees_is_taken_out_of_two(tmp_path: Path) -> None:
    import transformers as hf

    both = {"vision_config": encoder("clip").config.to_dict(), "projection_dim": 8,
            "text_config": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9,
                            "intermediate_size": 8, "bos_token_id": 0, "eos_token_id": 1}}  # fmt: skip
    model = hf.CLIPModel(hf.CLIPConfig(**both)).eval()
    model.save_pretrained(tmp_path)
    loaded = load_vision(tmp_path, preprocessing=TO_16)
    with torch.no_grad():
        hidden = model.vision_model(pixel_values=TO_16(PICTURES), output_hidden_states=True).hidden_states
    assert_equal_to_rounding(loaded.states(PICTURES).values[1], hidden[2], terms=TERMS)


def test_a_place_without_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no vision encoder that transformers can load: "):
        load_vision(tmp_path, preprocessing=TO_16)
    with pytest.raises(ValueError, match=r"there is no file or directory \./nowhere"):
        load_vision("./nowhere", preprocessing=TO_16)


def test_an_encoder_that_is_not_here_is_sought_once_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def unreachable(self: Any, name: str, *, timeout: float) -> None:
        asked.append((name, timeout))
        raise TimeoutError("too slow")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    message = r"^there is no vision encoder 'someone/eye' on this machine, .*\(too slow\); give a local directory$"
    with pytest.raises(RuntimeError, match=message):
        load_vision("someone/eye", preprocessing=TO_16)
    assert asked == [("someone/eye", 10.0)]


def test_an_encoder_whose_checkpoint_lacks_a_block_is_refused(tmp_path: Path) -> None:
    encoder("dinov2").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    held = load_file(path)
    name = next(name for name in held if "layer.1" in name)
    save_file({other: value for other, value in held.items() if other != name}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 of the weights that config\.json describes: \S+layer\.1\."):
        load_vision(tmp_path, preprocessing=TO_16)
    pooler = {"pooler.dense.weight": torch.zeros(2, 2), "classifier.weight": torch.zeros(2, 2)}
    save_file(held | pooler, path, metadata={"format": "pt"})
    assert load_vision(tmp_path, preprocessing=TO_16).n_blocks == 3


def test_seeing_needs_no_torchvision_and_installs_nothing(tmp_path: Path) -> None:
    encoder("dinov2").save_pretrained(tmp_path)
    noise(0).save(tmp_path / "a.png")
    lines = f"""
import subprocess, sys
def refuse(*given, **options): raise SystemExit(f"started {{given}}")
subprocess.Popen.__init__ = refuse
from latentcomm.experiments.crossmodal import Preprocessing, load_vision
model = load_vision({str(tmp_path)!r}, preprocessing=Preprocessing(size=(16, 16)))
print(model.states([{str(tmp_path / "a.png")!r}]).values.shape)
print([name for name in ("transformer_lens", "torchvision", "pip") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["torch.Size([3, 1, 17, 16])", "[]"], done.stderr
