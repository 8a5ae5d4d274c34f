"""Tables of names: what other packages declare is found, once for a search path."""

from importlib.metadata import entry_points
from pathlib import Path

import pytest
from toys import Counter

from latentcomm._core import names
from latentcomm._core.names import Named


def test_packages_are_scanned_once_until_the_search_path_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = Counter(entry_points)
    monkeypatch.setattr(names, "entry_points", scans)
    table = Named("number", {"e": "math:e"}, group="latentcomm.test_names")
    assert [*table] == ["e"] and len(table) == 1 and "pi" not in table and scans.calls == 1
    package = tmp_path / "circles-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: circles\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[latentcomm.test_names]\npi = math:pi\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [*table] == ["e", "pi"] and table["pi"] == pytest.approx(355 / 113) and scans.calls == 2
    with pytest.raises(ValueError, match="there is no number 'pie'; did you mean 'pi'"):
        table["pie"]
    assert scans.calls == 2
