"""Disks that are full or read-only: small file systems in memory."""

import os
import shutil
import subprocess
import sys

import pytest
import short_run

# A failed save's writes that nobody waits for: pytest has its own hook.
pytestmark = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning",
  "ignore:coroutine:RuntimeWarning",
)
# Saves with hardly any room; arguments: a folder of a small disk, a seed.
_FAILING_SAVES = """
import contextlib, pathlib, shutil, sys, time
import numpy as np
from hawis_jax import errors
from hawis_jax.runtime import checkpoint

folder = pathlib.Path(sys.argv[1])
failed = 0
with checkpoint.without_leftovers():
  for left in np.random.default_rng(int(sys.argv[2])).integers(0, 12288, 30):
    filler = folder / "filler"
    filler.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # what was deleted may not be free yet
      filler.write_bytes(bytes(shutil.disk_usage(folder).free - left))
    try:
      with checkpoint.Checkpoints(folder / "stage") as checkpoints:
        checkpoints.save(1, {str(i): np.ones(1000) for i in range(80)})
    except errors.InputError:
      failed += 1
    shutil.rmtree(folder / "stage", ignore_errors=True)
  time.sleep(1)
print(failed)
"""


@pytest.fixture
def disk(tmp_path):
  """Returns (folder, remount with options); needs to be root on Linux."""
  folder = tmp_path / "disk"
  folder.mkdir()
  command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
  if os.geteuid() != 0 or not shutil.which("mount"):
    pytest.skip("needs to mount a file system, which only root can")
  if subprocess.run(command, capture_output=True).returncode:
    pytest.skip("needs to mount a file system, which is not allowed here")

  def remount(options):
    subprocess.run(
      ["mount", "-o", f"remount,{options}", str(folder)], check=True
    )

  yield folder, remount
  subprocess.run(["umount", "-l", str(folder)], check=True)


def _refused(status, capsys, folder, words):
  error = short_run.one_line(capsys)
  assert status == 2 and str(folder) in error and words in error


@pytest.mark.slow
def test_a_full_disk(run, finished, disk, capsys, rng):
  """Full at random moments; with more room each time it goes on to the end."""
  folder, remount = disk
  workdir = folder / "run"
  needed = sum(p.stat().st_size for p in finished.rglob("*") if p.is_file())
  for size in sorted(rng.uniform(0.05, 0.8, 3) * needed):
    remount(f"size={int(size)}")
    _refused(run(workdir), capsys, folder, "No space left on device")
  remount("size=64m")
  assert run(workdir) == 0
  short_run.same(workdir, finished)


def test_failed_saves_print_nothing(disk, rng):
  folder, _ = disk
  ended = subprocess.run(
    [sys.executable, "-c", _FAILING_SAVES, folder, str(rng.integers(2**31))],
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert (ended.stdout, ended.stderr) == ("30\n", "")


@pytest.mark.slow
def test_a_command_on_a_full_disk_prints_one_line(start, disk):
  """Also what comes when the process ends."""
  folder, remount = disk
  for size in ("400k", "700k", "900k"):
    remount(f"size={size}")
    process = start(folder / "run", stderr=subprocess.PIPE)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 2
    assert error.startswith(f"error: can't write {folder}/run"), error
    assert "No space left on device" in error
    assert error.count("\n") == 1, error
    shutil.rmtree(folder / "run")


def test_a_disk_that_becomes_read_only(run, finished, disk, capsys):
  folder, remount = disk
  workdir = folder / "run"
  shutil.copytree(finished, workdir)
  shutil.rmtree(workdir / "robustness")
  remount("ro")
  _refused(run(workdir), capsys, folder, "Read-only file system")
  remount("rw")
  assert run(workdir) == 0
  short_run.same(workdir, finished)
