"""A part separates fitting from test pictures: by group, by pixels, and by the sources of composed pictures."""

from dataclasses import replace

import pytest
from seeing import noise, sender

from latentcomm.experiments.crossmodal.digits import FOUR_CELLS, WORDS, four_cells
from latentcomm.experiments.crossmodal.pictures import Picture, PictureSet
from latentcomm.experiments.crossmodal.questions import Question
from latentcomm.experiments.crossmodal.splits import Part, digit_parts, pooled_for

QUESTION = (Question("identity", "It is", "identity", ("a", "b")),)


def test_a_part_with_equal_pictures_on_both_sides_is_refused() -> None:
    one, same, other = (Picture(name, noise(seed), name) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert Part("fine", PictureSet("x", (one,)), PictureSet("x", (other,)), QUESTION).name == "fine"
    with pytest.raises(ValueError, match="'a' for fitting and 'b' for testing of 'bad' are equal in every pixel"):
        Part("bad", PictureSet("x", (one,)), PictureSet("x", (other, same)), QUESTION)


def test_an_encoder_without_class_token_is_read_by_patches_and_reported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parts = digit_parts(n_fitting=8, n_composed=8, n_testing=4)
    found = pooled_for(sender("vit"), parts)
    assert [(each.pooling, each.grid) for each in found] == [("class", 1), ("patches", 2)]
    assert capsys.readouterr().err == ""
    found = pooled_for(sender("siglip"), parts)
    assert [(each.pooling, each.grid) for each in found] == [("patches", 1), ("patches", 2)]
    assert "digits: tiny-siglip has no class token; the mean of the patches is read" in capsys.readouterr().err
    assert {each.pooling for each in pooled_for(sender("vit"), parts, "patches")} == {"patches"}
    assert {(each.pooling, each.grid) for each in pooled_for(sender("vit"), parts, "class")} == {("class", 1)}
    with pytest.raises(ValueError, match="has no class token; pool its patches"):
        pooled_for(sender("siglip"), parts, "class")


def test_no_scan_is_on_both_sides_of_digits_alone_or_composed() -> None:
    one, four = digit_parts(n_fitting=40, n_composed=200, n_testing=100)
    scans = [{each.group for each in side} for side in (one.fitting, one.testing)]
    assert not scans[0] & scans[1] and all(name.startswith("scan ") for name in scans[0] | scans[1])
    for side in (four.fitting, four.testing):
        assert all(1 <= len(each.sources) <= 4 for each in side)
    composed = [{scan for each in side for scan in each.sources} for side in (four.fitting, four.testing)]
    assert min(map(len, composed)) > 100 and not composed[0] & composed[1]


def test_composed_pictures_share_no_scan_while_there_are_others() -> None:
    _, four = digit_parts(n_fitting=8, n_composed=240, n_testing=100)
    for side in (four.fitting, four.testing):
        scans = [scan for picture in side for scan in picture.sources]
        assert len(scans) == len(set(scans)) == sum(WORDS.index(each.facts["count"]) for each in side)


def test_composed_pictures_of_the_same_scans_may_not_stand_on_both_sides() -> None:
    def renamed(scans: tuple[int, ...]) -> PictureSet:
        made = four_cells(scans, n=4, seed=1)
        return PictureSet("b", tuple(replace(each, id=f"b{each.id}", group=f"b{each.id}") for each in made))

    first = four_cells((1, 2, 3), n=4)
    assert Part("fine", first, renamed((4, 5, 6)), FOUR_CELLS).name == "fine"
    with pytest.raises(ValueError, match=r"'scan .' are in the fitting and in the testing"):
        Part("bad", first, renamed((1, 2, 3)), FOUR_CELLS)
