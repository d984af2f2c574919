"""docs/reliability.md names tests that there are, and all of this folder."""

import pathlib
import re

_TESTS = pathlib.Path(__file__).parents[1]
_TABLE = _TESTS.parent / "docs" / "reliability.md"


def test_every_row_names_a_test():
  named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", _TABLE.read_text())
  rows = [x for x in _TABLE.read_text().splitlines() if ".py::" in x]
  assert len(named) == len(rows) >= 30
  for file, name in named:
    assert f"\ndef {name}(" in (_TESTS / file).read_text(), (file, name)


def test_every_fault_has_a_row():
  text = _TABLE.read_text()
  for path in pathlib.Path(__file__).parent.glob("test_*.py"):
    if path != pathlib.Path(__file__):
      for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M):
        assert f"{path.name}::{name}`" in text, name
