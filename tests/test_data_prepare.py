"""Tests of `python -m hawis_jax.data prepare`, on archives made here."""

import hashlib
import io
import os
import pathlib
import subprocess
import sys
import tarfile

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from hawis_jax import config
from hawis_jax import data
from hawis_jax.data import __main__ as command
from hawis_jax.data import cifar
from hawis_jax.data import imagenet
from hawis_jax.data import prepare

ROOT = pathlib.Path(__file__).resolve().parents[1]
CLASSES = ("n01440764", "n01443537", "n15075141")  # labels 0, 1, 999
CIFARS = ("cifar10", "cifar100")


@pytest.fixture
def rng():
  return np.random.default_rng()


def tar(files, mode="w"):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode=mode) as archive:
    for name, content in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))
  return buffer.getvalue()


def sha256(path):
  return hashlib.sha256(path.read_bytes()).hexdigest()


def cifar_files(rng, name, train=6, test=5):
  """Returns {member: bytes} of a small archive."""
  layout = cifar.LAYOUTS[name]
  files = {}
  for file, count in layout.labels.values():
    files[file] = "".join(f"name{i}\n" for i in range(count)).encode() + b"\n"
  for split, names in layout.files.items():
    for file in names:
      size = (train if split == "train" else test, len(layout.labels) + 3072)
      records = rng.integers(0, 256, size, np.uint8)
      for column, (_, count) in enumerate(layout.labels.values()):
        records[:, column] %= count
      files[file] = records.tobytes()
  return files


def write_cifar(path, name, files):
  folder = cifar.LAYOUTS[name].folder
  path.write_bytes(tar({f"{folder}/{k}": v for k, v in files.items()}, "w:gz"))
  return path


def jpeg(rng, mode="RGB", kind="JPEG"):
  pixels = rng.integers(0, 256, (*rng.integers(20, 40, 2), 3), np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(pixels).convert(mode).save(buffer, kind)
  return buffer.getvalue()


def imagenet_images(rng):
  """Returns {file: bytes} by split; odd ones as in the original."""
  odd = (("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"))
  train = {
    f"{name}_{i}.JPEG": jpeg(rng, *odd[i]) for name in CLASSES for i in range(4)
  }
  val = {f"ILSVRC2012_val_{i:08}.JPEG": jpeg(rng) for i in (3, 1, 2)}
  return train, val


def write_imagenet(folder, train, val):
  """Writes the two tars; returns the arguments of the command."""
  by_class = {
    f"{name}.tar": tar({k: v for k, v in train.items() if k.startswith(name)})
    for name in CLASSES
  }
  paths = folder / "train.tar", folder / "val.tar"
  for path, files in zip(paths, (by_class, val), strict=True):
    path.write_bytes(tar(files))
  return [
    *("--archive", *map(str, paths)),
    *("--sha256", *map(sha256, paths)),
  ]


def run(name, data_dir, *arguments):
  return command.main(
    ["prepare", name, "--data_dir", str(data_dir), *arguments]
  )


def fails(capsys, words, name, data_dir, *arguments):
  """Expects exit status 2, one line that has all the words, and no files."""
  assert run(name, data_dir, *arguments) == 2
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1
  assert lines[0].startswith("error: ")
  for word in words:
    assert word in lines[0]
  if data_dir.is_dir():
    assert {path.name for path in data_dir.iterdir()} <= {"downloads"}


# CIFAR


@pytest.mark.parametrize("name", CIFARS)
def test_cifar_is_read_back_to_the_bit(tmp_path, rng, name, capsys):
  files = cifar_files(rng, name)
  path = write_cifar(tmp_path / "a.tar.gz", name, files)
  out = tmp_path / "out"
  assert run(name, out, "--archive", str(path), "--sha256", sha256(path)) == 0
  layout, total = (
    cifar.LAYOUTS[name],
    6 * len(cifar.LAYOUTS[name].files["train"]),
  )
  printed = capsys.readouterr().out
  assert f"{out / name / '3.0.2'} has {total} train, 5 test" in printed
  source = tfds.data_source(name, data_dir=out, download=False)
  for split, names in layout.files.items():
    stored = b"".join(files[file] for file in names)
    records = np.frombuffer(stored, np.uint8).reshape(
      -1, len(layout.labels) + 3072
    )
    assert len(source[split]) == len(records)
    for example in source[split]:
      prefix, number = example["id"].decode().split("_")
      assert prefix == split
      record = records[int(number)]
      assert [example[feature] for feature in layout.labels] == record[
        : len(layout.labels)
      ].tolist()
      image = record[len(layout.labels) :].reshape(3, 32, 32)
      np.testing.assert_array_equal(example["image"], image.transpose(1, 2, 0))
    assert len({example["id"] for example in source[split]}) == len(records)
  section = config.default().data
  section.update(name=name, data_dir=str(out), validation_images=2)
  splits = data.load(section)
  assert splits.num_classes == layout.labels["label"][1]
  assert (splits.version, len(splits.test)) == ("3.0.2", 5)
  # Again: it is there, and needs no archive.
  path.unlink()
  assert run(name, out) == 0


def test_published_archive_needs_no_flags(tmp_path, rng, monkeypatch, capsys):
  """With its own digest, and only with all its images."""
  place = tmp_path / "downloads" / "manual"
  place.mkdir(parents=True)
  layout = cifar.LAYOUTS["cifar10"]
  path = place / layout.archive.name
  write_cifar(path, "cifar10", cifar_files(rng, "cifar10"))
  archive = prepare.Archive(layout.archive.name, "url", sha256(path))
  changed = cifar.Layout(archive, layout.folder, layout.files, layout.labels)
  monkeypatch.setitem(cifar.LAYOUTS, "cifar10", changed)
  words = ["got 30 images 'train', allowed are 50,000"]
  fails(capsys, words, "cifar10", tmp_path)
  monkeypatch.setattr(cifar, "COUNTS", {"train": 30, "test": 5})
  assert run("cifar10", tmp_path) == 0


@pytest.mark.parametrize("name", [*CIFARS, "imagenet2012"])
def test_missing_archive(tmp_path, name, capsys):
  archive = (
    imagenet.ARCHIVES[0]
    if name == "imagenet2012"
    else cifar.LAYOUTS[name].archive
  )
  place = tmp_path / "downloads" / "manual" / archive.name
  words = [archive.name, archive.url, str(place), "--archive PATH"]
  fails(capsys, words, name, tmp_path)


def test_another_archive_is_refused(tmp_path, rng, capsys):
  path = write_cifar(
    tmp_path / "a.tar.gz", "cifar10", cifar_files(rng, "cifar10")
  )
  out, arguments = tmp_path / "out", ("--archive", str(path))
  published = cifar.LAYOUTS["cifar10"].archive.sha256
  words = [sha256(path), published, "--sha256"]
  fails(capsys, words, "cifar10", out, *arguments)
  words = ["--sha256: got 00", sha256(path)]
  fails(capsys, words, "cifar10", out, *arguments, "--sha256", "00")
  assert not out.exists()


def longer(content):
  return content + b"x"


def out_of_range(content):
  return b"\xff" + content[1:]


DAMAGE = {
  "whole records of": ("test", longer),
  "got 0 bytes": ("test", lambda content: b""),
  "got label 255, allowed are 0 to 9": ("data_batch_3", out_of_range),
  "got 11 names, allowed are 10": ("meta", lambda content: content + b"more"),
  "no file cifar-10-batches-bin/data_batch_2.bin": ("data_batch_2", None),
}


@pytest.mark.parametrize("word", DAMAGE)
def test_damaged_content(tmp_path, rng, word, capsys):
  files = cifar_files(rng, "cifar10")
  part, change = DAMAGE[word]
  member = next(name for name in files if part in name)
  content = files.pop(member)
  if change:
    files[member] = change(content)
  path = write_cifar(tmp_path / "a.tar.gz", "cifar10", files)
  arguments = ("--archive", str(path), "--sha256", sha256(path))
  fails(capsys, [str(path), word], "cifar10", tmp_path / "out", *arguments)


@pytest.mark.parametrize("harm", ["cut", "text", "empty", "flipped"])
def test_damaged_archive(tmp_path, rng, harm, capsys):
  path = write_cifar(
    tmp_path / "a.tar.gz", "cifar10", cifar_files(rng, "cifar10")
  )
  content = path.read_bytes()
  middle = len(content) // 2
  path.write_bytes(
    {
      "cut": content[:middle],
      "text": b"not an archive",
      "empty": b"",
      "flipped": content[:middle] + bytes(200) + content[middle + 200 :],
    }[harm]
  )
  arguments = ("--archive", str(path), "--sha256", sha256(path))
  words = [str(path), "damaged archive"]
  fails(capsys, words, "cifar10", tmp_path / "out", *arguments)


# ImageNet


def assert_imagenet(out, train, val):
  """The bytes and labels are the originals', and all can be decoded."""
  decoders = {"image": tfds.decode.SkipDecoding()}
  source = tfds.data_source(
    "imagenet2012", data_dir=out, download=False, decoders=decoders
  )
  labels = dict(zip(CLASSES, (0, 1, 999), strict=True))
  found = {e["file_name"].decode(): e for e in source["train"]}
  assert {name: e["image"] for name, e in found.items()} == train
  for name, example in found.items():
    assert example["label"] == labels[name.split("_")[0]]
  found = {e["file_name"].decode(): e["image"] for e in source["validation"]}
  assert found == val
  section = config.default().data
  section.update(name="imagenet2012", data_dir=str(out), validation_images=2)
  section.update(image_size=16, resize=18, augment="imagenet")
  splits = data.load(section)
  assert (splits.num_classes, len(splits.test)) == (1000, len(val))
  everything = splits.train_and_validation
  batch = next(
    data.train_batches(everything, seed=0, batch_size=12, augment="imagenet")
  )
  assert batch["image"].shape == (12, 16, 16, 3)
  return splits


def test_imagenet_from_tars(tmp_path, rng, capsys):
  train, val = imagenet_images(rng)
  arguments = write_imagenet(tmp_path, train, val)
  out = tmp_path / "out"
  assert run("imagenet2012", out, *arguments) == 0
  assert "has 12 train, 3 validation" in capsys.readouterr().out
  splits = assert_imagenet(out, train, val)
  # The labels of the validation images are those of TFDS, by number.
  labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
  names = tfds.core.tfds_path("datasets/imagenet2012/labels.txt")
  names = names.read_text().split()
  expected = [names.index(n) for n in labels.read_text().split()[:3]]
  assert sorted(splits.test.read(range(3))["label"]) == sorted(expected)


def test_imagenet_from_a_folder(tmp_path, rng, capsys):
  train, val = imagenet_images(rng)
  val = dict(zip(CLASSES, val.items(), strict=True))
  for name in CLASSES:
    for split in ("train", "val"):
      (tmp_path / "in" / split / name).mkdir(parents=True)
    file, content = val[name]
    (tmp_path / "in" / "val" / name / file).write_bytes(content)
  for file, content in train.items():
    path = tmp_path / "in" / "train" / file.split("_")[0] / file
    path.write_bytes(content)
  out, arguments = tmp_path / "out", ("--folder", str(tmp_path / "in"))
  words = ["got 12 images 'train', allowed are 1,281,167"]
  fails(capsys, words, "imagenet2012", out, *arguments)
  assert run("imagenet2012", out, *arguments, "--subset") == 0
  assert_imagenet(out, train, dict(val.values()))


def test_folder_of_other_classes(tmp_path, rng, capsys):
  for split in ("train", "val"):
    (tmp_path / split / "cat").mkdir(parents=True)
    (tmp_path / split / "cat" / f"{split}.JPEG").write_bytes(jpeg(rng))
  words = ["train.JPEG", "class 'cat'", "n01440764"]
  arguments = ("--folder", str(tmp_path), "--subset")
  fails(capsys, words, "imagenet2012", tmp_path / "out", *arguments)


def harmed(train, val, word):
  first = min(train)
  if word == "damaged, allowed are JPEG images":
    train[first] = b"text"
  elif word == "got it twice":
    train |= {f"{CLASSES[0]}/{first}": train[first]}
  elif word == "got file ILSVRC2012_val_00050001.JPEG":
    val["ILSVRC2012_val_00050001.JPEG"] = val.popitem()[1]
  elif word == "got file cat.JPEG":
    val["cat.JPEG"] = val.popitem()[1]


@pytest.mark.parametrize(
  "word",
  [
    "damaged, allowed are JPEG images",
    "got it twice",
    "got file ILSVRC2012_val_00050001.JPEG",
    "got file cat.JPEG",
  ],
)
def test_damaged_imagenet(tmp_path, rng, word, capsys):
  train, val = imagenet_images(rng)
  harmed(train, val, word)
  arguments = write_imagenet(tmp_path, train, val)
  fails(capsys, [word], "imagenet2012", tmp_path / "out", *arguments)


def test_cut_tar(tmp_path, rng, capsys):
  arguments = write_imagenet(tmp_path, *imagenet_images(rng))
  path = tmp_path / "train.tar"
  os.truncate(path, path.stat().st_size // 2)
  arguments[4] = sha256(path)
  words = ["train.tar: damaged archive"]
  fails(capsys, words, "imagenet2012", tmp_path / "out", *arguments)


def test_small_disk(tmp_path, rng, capsys, monkeypatch):
  arguments = write_imagenet(tmp_path, *imagenet_images(rng))
  monkeypatch.setattr(imagenet, "_DISK_SHARE", 1e12)
  words = ["GB of free space, needed are"]
  fails(capsys, words, "imagenet2012", tmp_path / "out", *arguments)


# The command


def test_killed_preparation_leaves_nothing(tmp_path, rng, monkeypatch):
  def killed(*_):
    raise KeyboardInterrupt

  path = write_cifar(
    tmp_path / "a.tar.gz", "cifar10", cifar_files(rng, "cifar10")
  )
  out, digest = tmp_path / "out", sha256(path)
  with monkeypatch.context() as patch:
    patch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
      cifar.prepare_set("cifar10", out, str(path), digest)
  assert not list(out.iterdir())
  assert cifar.prepare_set("cifar10", out, str(path), digest).is_dir()


def test_two_processes_at_once(tmp_path, rng):
  """Neither fails, neither tries TensorFlow, one set is left."""
  path = write_cifar(
    tmp_path / "a.tar.gz", "cifar100", cifar_files(rng, "cifar100")
  )
  script = """
import sys
from hawis_jax.data import __main__
status = __main__.main(sys.argv[1:])
assert "tensorflow" not in sys.modules
sys.exit(status)
"""
  arguments = ["prepare", "cifar100", "--data_dir", str(tmp_path / "out")]
  arguments += ["--archive", str(path), "--sha256", sha256(path)]
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", script, *arguments],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for _ in range(2)
  ]
  for process in processes:
    output, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, "")
    assert output.splitlines()[-1].endswith("has 6 train, 5 test")
  names = [path.name for path in (tmp_path / "out").iterdir()]
  assert names == ["cifar100"]


def test_digits(tmp_path, capsys):
  assert run("digits", tmp_path) == 0
  assert run("digits", tmp_path) == 0
  assert "digits/1.0.0 has 1,437 train, 360 test" in capsys.readouterr().out


def test_unwritable_directory(tmp_path, rng, capsys):
  (tmp_path / "file").write_text("in the way")
  path = write_cifar(
    tmp_path / "a.tar.gz", "cifar10", cifar_files(rng, "cifar10")
  )
  arguments = ("--archive", str(path), "--sha256", sha256(path))
  words = ["cannot write cifar10 to", "writable directory"]
  fails(capsys, words, "cifar10", tmp_path / "file" / "below", *arguments)


@pytest.mark.parametrize(
  ("name", "arguments", "word"),
  [
    (
      "digits",
      ["--archive", "x"],
      "--archive: got 1 for digits, allowed are 0",
    ),
    ("cifar10", ["--sha256", "x", "y"], "--sha256: got 2 for cifar10"),
    ("imagenet2012", ["--archive", "x"], "allowed are 2, or none"),
    ("cifar10", ["--folder", "x"], "--folder: got it for cifar10"),
    ("imagenet2012", ["--subset"], "--subset: allowed is only with --folder"),
    (
      "imagenet2012",
      ["--folder", "x", "--archive", "y"],
      "--archive: got 1 for imagenet2012, allowed are 0",
    ),
  ],
)
def test_flags_that_do_not_fit(tmp_path, name, arguments, word, capsys):
  fails(capsys, [word], name, tmp_path, *arguments)


def test_archive_flag_of_a_missing_file(tmp_path, capsys):
  words = [f"no file {tmp_path / 'x'}", "needed is cifar-10-binary.tar.gz"]
  arguments = ("--archive", str(tmp_path / "x"))
  fails(capsys, words, "cifar10", tmp_path, *arguments)
