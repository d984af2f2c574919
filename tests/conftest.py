"""Strict JAX for all tests, and what several of them use."""

import os
import pathlib

import hypothesis
import pytest

from hawis_jax import backend

os.environ.setdefault("JAX_PLATFORMS", "cpu")
backend.configure()

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
  """Data beside the project that a checkout may lack."""
  path = pathlib.Path(__file__).parents[2] / "shared"
  if not path.is_dir():
    pytest.skip(f"needs {path}, which is not there")
  return path


# The first example compiles: a deadline an example would measure that.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")
