"""Sizes that are no sizes; what is planned with a budget is tested where it is planned."""

import pytest

from latentcomm._core.budget import budget, parse_bytes, within


@pytest.mark.parametrize("text", ["much", "", "2 gallons", "-1GB", "0GB", "0.1", "1e9", "GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="give a size such as 2GB or 800MiB"):
        parse_bytes(text)


def test_a_budget_ends_with_its_block() -> None:
    with within(8):
        with pytest.raises(KeyError), within(7):
            raise KeyError(budget())
        assert budget() == 8
    assert budget() is None
