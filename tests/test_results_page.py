"""results/README.md says what the tables say."""

import re

import pytest

from psp.profiles import ROOT

PAGE = ROOT / "results" / "README.md"
LINK = re.compile(r"\]\(([^)#]+)\)")
NUMBER = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.])")


def sections():
    """{heading: text} of the page."""
    parts = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {part.splitlines()[0]: part for part in parts}


def linked(text):
    return [(PAGE.parent / link).resolve() for link in LINK.findall(text) if "://" not in link]


def numbers(paths):
    """Every number of the linked tables, rounded to one and to two decimals; a sign makes no difference."""
    found = set()
    for path in paths:
        if path.suffix == ".md" and "tables" in path.parts:
            path = path.with_suffix(".csv")
        if path.suffix == ".csv":
            for value in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", path.read_text(encoding="utf-8")):
                found |= {f"{float(value):.{digits}f}" for digits in (1, 2)}
    return found


@pytest.mark.parametrize("heading", sections())
def test_every_link_leads_somewhere_and_every_number_is_in_a_linked_table(heading):
    text = sections()[heading]
    paths = linked(text)
    assert [path for path in paths if not path.exists()] == []
    shown = set(NUMBER.findall(text))
    assert shown <= numbers(paths), f"in no linked table: {sorted(shown - numbers(paths))}"
