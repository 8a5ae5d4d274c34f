"""The tables of the results pages hold the committed numbers, all of them, and no others."""

from pathlib import Path
from typing import Any

import pytest
from results_tables import (
    AUDITED,
    CROSS,
    FAULTS,
    FIGURES,
    MERGING,
    PICTURES,
    THOUGHT,
    audit_table,
    cascade_rows,
    channels_table,
    cross_table,
    faults_table,
    learned_tables,
    likeness_table,
    merging_table,
    pairs_table,
    pictures_table,
    pictures_tests,
    refusals_table,
    replies_table,
    thought_table,
)

from latentcomm.experiments.compare.report import audit_figure, comparison_figure
from latentcomm.reporting.publish import check_replot

DOCS = Path(__file__).resolve().parent.parent / "docs"


def tables(page: str = "results_merging.md") -> list[list[str]]:
    """The tables of the page, each as its lines."""
    found: list[list[str]] = [[]]
    for line in (DOCS / page).read_text("utf-8").splitlines():
        if line.startswith("|"):
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [lines for lines in found if lines]


@pytest.mark.parametrize("task", ["countries", "tip_sheets"])
def test_the_table_of_merging_is_that_of_the_figures_data(task: str) -> None:
    assert merging_table(task) in tables()


@pytest.mark.parametrize(
    ("page", "figure", "table"),
    [
        *(("channels", f"fig8_channels_{task}", (channels_table, task)) for task in ("countries", "tip_sheets")),
        *(("merging", CROSS[direction], (cross_table, direction)) for direction in CROSS),
        *(("cascade", f"fig11_cascade_{task}", (cascade_rows, task)) for task in ("kv_math_worked", "gsm8k")),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("fig") else "",
)
def test_a_table_is_that_of_the_figures_data(page: str, figure: str, table: tuple[Any, str]) -> None:
    if not (FIGURES / f"{figure}.csv").exists():
        pytest.skip("not committed yet; run the analysis that writes it")
    make, of = table
    assert make(of) in tables(f"results_{page}.md")


def test_faults_are_survived_and_wrong_lines_refused_as_the_page_says() -> None:
    if not FAULTS.exists():
        pytest.skip("not committed yet; run the benchmark that writes it")
    faults, wrong = faults_table(), refusals_table()
    assert tables("reliability.md") == [faults, wrong]
    assert len(faults) > 10 and len(wrong) > 20
    assert "not survived" not in "".join(faults) and "not refused" not in "".join(wrong)


def test_the_tables_of_what_learns_are_those_of_the_benchmark() -> None:
    shown = tables("learned.md")
    assert all(table in shown for table in learned_tables().values())


def test_a_table_shows_what_its_csv_says() -> None:
    """One line by hand from the file's own text."""
    head, *rows = (line.split(",") for line in (FIGURES / f"{MERGING}.csv").read_text("utf-8").splitlines())
    row = next(
        dict(zip(head, row, strict=True)) for row in rows if row[:4] == ["countries", "replace", "message", "choices"]
    )
    shown = f"{float(row['accuracy']):.2f} [{float(row['low']):.2f}, {float(row['high']):.2f}]"
    line = next(line for line in merging_table("countries") if line.startswith("| replace |"))
    assert f"| {row['read_layer']}, {row['write_layer']} |" in line and f"| {shown} |" in line


@pytest.mark.parametrize("data", PICTURES)
def test_the_tables_of_pictures_are_those_of_the_figures_data(data: str) -> None:
    if not (FIGURES / f"fig12_crossmodal_{data}.csv").exists():
        pytest.skip("not committed yet; run the analysis that writes it")
    shown = tables("results_crossmodal.md")
    assert pictures_table(data) in shown
    assert pictures_tests(data) in shown
    assert replies_table(data) in shown


def test_the_table_of_blocks_and_layers_is_that_of_the_figures_data() -> None:
    assert likeness_table() in tables("results_crossmodal.md")


@pytest.mark.parametrize("data", PICTURES)
def test_the_tables_of_training_pairs_are_those_of_the_figures_data(data: str) -> None:
    if not (FIGURES / f"fig14_training_pairs_{data}.csv").exists():
        pytest.skip("not committed yet; run the analysis that writes it")
    assert pairs_table(data) in tables("results_crossmodal.md")


@pytest.mark.parametrize("metric", ["free", "choices"])
def test_the_tables_of_answers_and_thoughts_are_those_of_the_figure(metric: str) -> None:
    if not (FIGURES / f"{THOUGHT}.csv").exists():
        pytest.skip("not committed yet; run the analysis that writes it")
    assert thought_table(metric) in tables("results.md")


@pytest.mark.parametrize("name", AUDITED)
def test_an_audit_is_that_of_its_data_on_the_page_and_in_the_figure(name: str) -> None:
    assert audit_table(name) in tables("findings.md")
    folder, _, file = name.rpartition("/")
    check_replot(file, FIGURES / folder, comparison_figure)
    check_replot(f"{file}_audit", FIGURES / folder, audit_figure)
