"""Runs in processes of their own."""

import os
import pathlib
import subprocess
import sys

import pytest
import short_run

_ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def start(data_dir, tmp_path, nothing_ignored):
  """Starts the shortened run of `short_run` in a process of its own."""

  def call(workdir, stderr=subprocess.STDOUT):
    values = {**short_run.SHORT, "data.data_dir": data_dir}
    return subprocess.Popen(
      [
        *(sys.executable, "-m", "hawis_jax.main"),
        f"--config={short_run.CONFIG}",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in values.items()),
      ],
      cwd=tmp_path,
      env=os.environ
      | {
        "PYTHONPATH": str(_ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
      },
      stdout=subprocess.PIPE,
      stderr=stderr,
      text=True,
    )

  return call
