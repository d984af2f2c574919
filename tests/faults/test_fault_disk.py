"""Disks that are full or read-only: small file systems in memory."""

import os
import shutil
import subprocess

import numpy as np
import pytest
import short_run


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
  error = capsys.readouterr().err
  assert status == 2, error
  assert error.startswith("error: ") and error.count("\n") == 1
  assert str(folder) in error and words in error


def test_a_full_disk(run, finished, disk, capsys):
  """Full at random moments; with more room each time it goes on to the end."""
  folder, remount = disk
  workdir = folder / "run"
  needed = sum(p.stat().st_size for p in finished.rglob("*") if p.is_file())
  rng = np.random.default_rng()
  for size in sorted(rng.uniform(0.05, 0.8, 3) * needed):
    remount(f"size={int(size)}")
    _refused(run(workdir), capsys, folder, "No space left on device")
  remount("size=64m")
  assert run(workdir) == 0
  expected, got = short_run.state(finished), short_run.state(workdir)
  for name in expected:
    assert got[name] == expected[name], name


def test_a_disk_that_becomes_read_only(run, finished, disk, capsys):
  folder, remount = disk
  workdir = folder / "run"
  shutil.copytree(finished, workdir)
  shutil.rmtree(workdir / "robustness")
  remount("ro")
  _refused(run(workdir), capsys, folder, "Read-only file system")
  remount("rw")
  assert run(workdir) == 0
  expected, got = short_run.state(finished), short_run.state(workdir)
  assert got["robustness/result.json"] == expected["robustness/result.json"]
