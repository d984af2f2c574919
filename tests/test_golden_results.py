"""Results that no refactoring may change, against those on disk.

golden/make.py has what is computed, and writes it anew.
"""

from golden import make
import numpy as np
import pytest


@pytest.mark.exact
@pytest.mark.parametrize("group", make.GROUPS)
def test_results_are_those_on_disk(group):
  """Integers to the bit, floats as closely as XLA agrees."""
  compute, rtol = make.GROUPS[group]
  got, expected = compute(), make.stored(group)
  assert set(got) == set(expected)
  for name, want in expected.items():
    found = np.asarray(got[name])
    assert (found.shape, found.dtype) == (want.shape, want.dtype), name
    if np.issubdtype(want.dtype, np.floating):
      # Differences, weights about 0 for one, are as close in absolute terms.
      atol = rtol if group in ("chips", "training") else 0
      np.testing.assert_allclose(found, want, rtol, atol, err_msg=name)
    else:
      np.testing.assert_array_equal(found, want, name)
