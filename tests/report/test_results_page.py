"""README.md and results/README.md say what the tables say that they link to."""

import csv
import json
import re
from itertools import pairwise

import pytest

from psp.pipeline.profiles import ROOT
from psp.report.trials import read_trials, trials_table

PAGES = {"results/README.md": None, "README.md": "on real images"}
LINK = re.compile(r"\]\(([^)#]+)\)")
NUMBER = re.compile(r"(?<![\w.])\d+\.\d+(?: M\b)?(?!\w|\.\d)")
MEAN = re.compile(r"(\d+\.\d+) ± (\d+\.\d+)(?: points)?(?: at (\d+(?:\.\d+)?) %)?")
SERIES_SAID = {"weight decay": "PSP (weight decay)", "fixed sparsity": "PSP (fixed sparsity)", "ℓ1 norm": "ℓ1 norm"}
SERIES_SAID |= {"norm": "ℓ1 norm", "ℓ1 regularization": "PSP (ℓ1 regularization)"}
NAMES = "|".join(SERIES_SAID)
AGAINST = re.compile(rf"\b({NAMES}) against (?:the )?({NAMES}):? (?=\d)", re.IGNORECASE)
DIRECTION = re.compile(r"in its favour|against it")
ANY = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")


def sections():
    """{page: heading: text} of the sections that tell results."""
    for page, wanted in PAGES.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
            heading = part.splitlines()[0]
            if wanted is None or re.search(wanted, heading):
                yield pytest.param((ROOT / page).parent, part, id=f"{page}: {heading}")


def linked(folder, text):
    return [(folder / link).resolve() for link in LINK.findall(text) if "://" not in link]


def rows(paths):
    """[numbers in their order] of every row of the linked tables, those of one timed network together."""
    found = []
    for path in paths:
        if path.suffix == ".md" and "tables" in path.parts:
            path = path.with_suffix(".csv")
        if path.name == "choices.ipynb":
            trials = trials_table(read_trials(ROOT / "results" / "trials"))
            found += [ANY.findall(" ".join(map(str, row))) for row in trials.to_numpy()]
        if path.suffix == ".ipynb":
            found += [ANY.findall(line) for line in shown_by(path)]
        if path.suffix == ".txt":
            found.append(ANY.findall(path.read_text(encoding="utf-8")))
        if path.suffix != ".csv":
            continue
        networks = {}
        for row in csv.reader(path.read_text(encoding="utf-8").splitlines()):
            values = ANY.findall(" ".join(row))
            found.append(values)
            networks.setdefault(row[0], []).extend(values)
        if "timing" in path.stem:
            found += networks.values()
    return found


def shown_by(notebook):
    """The lines of a notebook's stored tables, which nbval compares with those that it makes."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", ()):
            yield from "".join(output.get("data", {}).get("text/plain", ())).splitlines()


def as_shown(value, like):
    """`value` with as many decimals as `like`, in millions if it is."""
    number, _, millions = like.partition(" ")
    value = float(value) / (1e6 if millions else 1)
    return f"{value:.{len(number.partition('.')[2])}f}" + (" M" if millions else "")


def has(row, shown):
    """Whether a row has this number, as rounded as it is shown; a sign makes no difference."""
    return any(as_shown(value, shown) == shown for value in row)


def has_pair(row, mean, spread):
    """Whether the two stand side by side in a row, as a mean and its standard deviation do."""
    return any((as_shown(a, mean), as_shown(b, spread)) == (mean, spread) for a, b in pairwise(row))


@pytest.mark.parametrize(("folder", "text"), list(sections()))
def test_every_link_leads_somewhere_and_every_number_is_in_a_linked_table(folder, text):
    paths = linked(folder, text)
    assert [path for path in paths if not path.exists()] == []
    table = rows(paths)
    assert [shown for shown in NUMBER.findall(text) if not any(has(row, shown) for row in table)] == []


@pytest.mark.parametrize(("folder", "text"), list(sections()))
def test_a_mean_stands_with_its_own_spread_at_its_own_sparsity(folder, text):
    table = rows(linked(folder, text))
    for mean, spread, sparsity in MEAN.findall(re.sub(r"\s+", " ", text)):
        fitting = [row for row in table if has_pair(row, mean, spread) and (not sparsity or has(row, sparsity))]
        assert fitting, f"no linked table has {mean} ± {spread} {sparsity and f'at {sparsity} %'} in a row"


@pytest.mark.parametrize(("folder", "text"), list(sections()))
def test_the_numbers_of_a_shown_row_are_those_of_one_row_of_a_table(folder, text):
    table = rows(linked(folder, text))
    for line in text.splitlines():
        shown = NUMBER.findall(line.replace("×", "").replace("/", " ")) if line.startswith("| ") else []
        assert not shown or any(all(has(row, n) for n in shown) for row in table), f"in no row of a table: {line}"


def said_of_orders(text):
    """(better, worse, mean, spread, in favour of the first, its place among the numbers of the two) of each number."""
    for bullet in re.split(r"^- ", text, flags=re.MULTILINE):
        _, *said = AGAINST.split(re.sub(r"\s+", " ", bullet))
        for better, worse, part in zip(said[::3], said[1::3], said[2::3], strict=True):
            for place, number in enumerate(MEAN.finditer(part)):
                direction = DIRECTION.search(part, number.end())
                assert direction, f"{better} against {worse}, {number[0]}: in whose favour?"
                names = SERIES_SAID[better.lower()], SERIES_SAID[worse.lower()]
                yield *names, *number.groups()[:2], direction[0] == "in its favour", place


@pytest.mark.parametrize(("folder", "text"), list(sections()))
def test_what_is_said_of_two_methods_is_of_these_and_has_their_sign(folder, text):
    """At 70 % the first number, at 80 % the second."""
    parts = re.split(r"^### ", text, flags=re.MULTILINE)
    said = 0
    for part in parts:
        claims = {}
        for path in linked(folder, part):
            if path.name == "figure_3_claims.md":
                table = csv.DictReader(path.with_suffix(".csv").read_text(encoding="utf-8").splitlines())
                claims = {row["claim"]: row["ours"] for row in table}
        for better, worse, mean, spread, favours, place in said_of_orders(part):
            ours = claims[f"{better} < {worse} at {(70, 80)[place]} %, errors in %"]
            sign = "" if favours else "-"
            assert f"difference {sign}{mean} ± {spread}" in ours
            said += 1
    assert said or "Figure 3" not in text.splitlines()[0]


def test_what_is_said_at_the_top_of_the_results_is_said_with_its_table_below():
    text = re.sub(r"[ \n]+", " ", (ROOT / "results/README.md").read_text(encoding="utf-8"))
    top, *below = re.split(r" ## ", text)
    assert set(MEAN.findall(top)) | set(NUMBER.findall(top))
    for mean, spread, _ in MEAN.findall(top):
        assert any(f"{mean} ± {spread}" in section for section in below), f"{mean} ± {spread} at the top alone"
    for number in NUMBER.findall(top):
        assert any(number in NUMBER.findall(section) for section in below), f"{number} at the top alone"


def test_a_number_with_the_other_sign_is_found():
    (one, other) = said_of_orders(
        "Weight decay\nagainst the norm: 0.58 ± 0.87 in its favour and 0.43 ± 0.97 points against it."
    )
    assert one == ("PSP (weight decay)", "ℓ1 norm", "0.58", "0.87", True, 0)
    assert other == ("PSP (weight decay)", "ℓ1 norm", "0.43", "0.97", False, 1)
