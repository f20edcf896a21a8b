"""The generated tables of the README and the docs say what is so."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
assert spec
assert spec.loader
tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)


# It runs the whole kit on what is not optfn's.
SLOW = ("docs/conformance.md", "findings")
EVERY = [
    pytest.param(*table, marks=[pytest.mark.slow] if table == SLOW else [])
    for table in tables.TABLES
]


@pytest.mark.parametrize(("page", "name"), EVERY)
def test_table_is_what_the_script_writes(page, name):
    found = tables.section(page, name).search((ROOT / page).read_text())
    assert found
    assert found[2] == tables.markdown(tables.TABLES[page, name]()), "run `python docs/tables.py`"
