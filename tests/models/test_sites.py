"""Sites and the TransformerLens names they stand for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentcomm.models.sites import STREAMS, Site


def test_a_site_is_named_as_transformer_lens_names_its_hook_point() -> None:
    assert Site(3).hook_name == "blocks.3.hook_resid_post"
    assert Site(0, "resid_pre").hook_name == "blocks.0.hook_resid_pre"
    assert Site(12, "resid_mid").hook_name == "blocks.12.hook_resid_mid"
    assert Site(1, "attn_out").hook_name == "blocks.1.hook_attn_out"
    assert Site(1, "mlp_out").hook_name == "blocks.1.hook_mlp_out"


@given(layer=st.integers(0, 10_000), stream=st.sampled_from(STREAMS))
def test_parsing_a_hook_name_gives_the_site_back(layer: int, stream: str) -> None:
    assert Site.parse(Site(layer, stream).hook_name) == Site(layer, stream)


@pytest.mark.parametrize(
    "name",
    [
        "hook_embed",
        "ln_final.hook_normalized",
        "blocks.1.attn.hook_q",
        "blocks.one.hook_resid_post",
        "blocks.-1.hook_resid_post",
        "block.1.hook_resid_post",
        "blocks.1.resid_post",
        "",
    ],
)
def test_another_hook_point_is_no_site(name: str) -> None:
    with pytest.raises(ValueError, match=r"is not the hook name of a site; expected blocks\.LAYER\.hook_STREAM"):
        Site.parse(name)


def test_a_misspelt_stream_is_refused_with_the_one_that_was_meant() -> None:
    with pytest.raises(ValueError, match="there is no stream 'resid_pots'; did you mean 'resid_post'"):
        Site(1, "resid_pots")
    with pytest.raises(ValueError, match="there is no stream 'atn_out'; did you mean 'attn_out'"):
        Site(1, "atn_out")
    with pytest.raises(ValueError, match="there is no stream 'hook_mlp_in'"):
        Site.parse("blocks.1.hook_hook_mlp_in")


def test_a_stream_like_no_other_is_refused_with_all_there_are() -> None:
    with pytest.raises(ValueError, match="choose one of resid_pre, resid_mid, resid_post, attn_out, mlp_out"):
        Site(1, "zzz")


def test_a_layer_counts_from_nought() -> None:
    with pytest.raises(ValueError, match="layer -1 is negative; layers count from 0"):
        Site(-1)


def test_sites_are_values_in_the_order_of_their_layers() -> None:
    assert len({Site(1), Site(1), Site(1, "resid_pre")}) == 2
    assert max(Site(2, "attn_out"), Site(1, "resid_post")) == Site(2, "attn_out")
