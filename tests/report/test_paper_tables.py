"""The paper's tables as a reader may fill them in, and ours beside them."""

import pandas as pd
import pytest

from psp.errors import ConfigError
from psp.report.paper_tables import COMPARED, DENSE, KEYS, NOT_RUN, UNKNOWN, beside_the_paper, paper_values
from psp.report.tables import write_table

HEADING = ",".join((*KEYS, *COMPARED))
OURS = pd.DataFrame(
    [
        ("cifar10", "resnet56", DENSE, 0.0, 7.5, float("nan"), 850_000, 125_000_000),
        ("cifar10", "resnet56", "column", 0.001, 8.0, float("nan"), 400_000, 60_000_000),
        ("cifar10", "resnet56", "column", 0.002, 9.0, float("nan"), 200_000, 30_000_000),
    ],
    columns=[*KEYS, "setting", *COMPARED],
)


@pytest.fixture
def filled_in(tmp_path):
    def write(*lines, heading=HEADING):
        path = tmp_path / "paper_tables.csv"
        path.write_text("\n".join(["# a comment, with a comma", heading, *lines]), encoding="utf-8")
        return path

    return write


def test_the_committed_file_can_be_read_whoever_has_filled_it_in():
    assert list(paper_values().columns) == [*KEYS, *COMPARED]


def test_ours_stand_beside_the_papers_number_and_unknown_cells_say_so(filled_in):
    paper = paper_values(filled_in("cifar10, resnet56, column, 7.25, , 300000, "))
    table = beside_the_paper(OURS, paper)
    assert table["setting"].tolist() == [0.0, 0.001, 0.002]
    assert table["paper_top1_error_pct"].tolist() == [UNKNOWN, 7.25, 7.25]
    assert table["difference_top1_error_pct"].tolist() == [UNKNOWN, 0.75, 1.75]
    assert table["difference_params"].tolist() == [UNKNOWN, 100_000, -100_000]
    assert set(table["paper_macs"]) == set(table["difference_macs"]) == {UNKNOWN}


def test_an_empty_file_leaves_every_cell_unknown(filled_in):
    table = beside_the_paper(OURS, paper_values(filled_in()))
    assert len(table) == 3
    assert set(table.drop(columns=[*KEYS, "setting"]).to_numpy().flatten()) == {UNKNOWN}


def test_a_row_of_the_paper_without_one_of_ours_stands_at_the_end(filled_in):
    paper = paper_values(filled_in(f"cifar100,densenet40,{DENSE},24.5,,1000000,", "cifar10,resnet56,column,7,,,"))
    table = beside_the_paper(OURS, paper)
    assert table["network"].tolist() == ["resnet56"] * 3 + ["densenet40"]
    last = table.iloc[-1]
    assert (last["setting"], last["paper_params"], last["difference_params"]) == (NOT_RUN, 1_000_000, NOT_RUN)
    assert last["paper_macs"] == UNKNOWN


def test_numbers_among_words_are_written_as_rounded_as_others(filled_in, tmp_path):
    paper = paper_values(filled_in("cifar10,resnet56,column,7.25,,300001,"))
    formats = {"difference_top1_error_pct": "{:.2f}", "difference_params": "{:.0f}"}
    text = write_table(beside_the_paper(OURS, paper), tmp_path / "table", "# Title", formats)
    assert "| 0.75 " in text
    assert "| 99999 " in text
    assert "99999.0" not in text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("CIFAR10,resnet56,column,7,,,", "line 3: unknown dataset 'CIFAR10'; choose one of cifar10, cifar100"),
        ("cifar10,resnet56,none,7,,,", r"line 3: unknown structure 'none'; choose one of none \(dense\), column"),
        ("cifar10,resnet56,column,0.085,,,", "line 3: top1_error_pct is '0.085', expected in percent, such as 6.5"),
        ("cifar10,resnet56,column,8.5 %,,,", "top1_error_pct is '8.5 %', expected in percent"),
        ("cifar10,resnet56,column,,,0.27M,", "params is '0.27M', expected a whole number, such as 850000"),
        ("cifar10,resnet56,column,,,,125.5", "macs is '125.5', expected a whole number"),
        ("cifar10,resnet56,column,7,,270,000,", "line 3 has 8 cells, expected 7; write numbers without commas"),
        ("cifar10,resnet56,column,7", "line 3 has 4 cells, expected 7"),
        ("cifar10,resnet56,column,7,,,\ncifar10,resnet56,column,8,,,", "line 4: cifar10, resnet56, column has a row"),
    ],
)
def test_a_slip_is_named_with_its_line(filled_in, line, message):
    with pytest.raises(ConfigError, match=message):
        paper_values(filled_in(line))


def test_another_heading_and_an_empty_file_are_explained(filled_in, tmp_path):
    with pytest.raises(ConfigError, match="line 2: the heading must be dataset,network,structure,top1_error_pct"):
        paper_values(filled_in(heading=HEADING.replace("top1_error_pct", "error")))
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    with pytest.raises(ConfigError, match="line 1: the heading must be"):
        paper_values(empty)
