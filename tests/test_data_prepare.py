"""Tests of `python -m hawis_jax.data prepare`, on archives made here."""

import hashlib
import io
import pathlib
import subprocess
import sys
import tarfile
import types

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from hawis_jax import data
from hawis_jax.data import prepare

ROOT = pathlib.Path(__file__).resolve().parents[1]
CLASSES = ("n01440764", "n01443537", "n15075141")  # labels 0, 1, 999
CIFARS = {
  "cifar10": {"label": 10},
  "cifar100": {"coarse_label": 20, "label": 100},
}


@pytest.fixture(autouse=True)
def without_tensorflow():
  yield
  assert "tensorflow" not in sys.modules


@pytest.fixture
def publish(monkeypatch):
  """Returns a function that makes these archives the published ones."""

  def call(name, *paths):
    stock = tfds.builder_cls(name)
    infos = {
      url: types.SimpleNamespace(checksum=sha256(path))
      for url, path in zip(stock.url_infos, paths, strict=True)
    }
    monkeypatch.setattr(stock, "url_infos", infos)

  return call


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


def write_cifar(path, name, rng):
  """Writes 6 images to a file; returns the records [N, labels + 3072]."""
  self = types.SimpleNamespace(name=name)
  layout = tfds.builder_cls(name)._cifar_info.fget(self)
  counts = CIFARS[name].values()
  files, records = {}, {}
  for file, count in zip(layout.label_files, counts, strict=True):
    files[file] = "".join(f"name{i}\n" for i in range(count)).encode() + b"\n"
  for split in ("train", "test"):
    names = getattr(layout, f"{split}_files")
    size = (len(names), 6, len(counts) + 3072)
    parts = rng.integers(0, 256, size, np.uint8)
    parts[..., : len(counts)] %= np.array([*counts], np.uint8)
    records[split] = parts.reshape(-1, size[-1])
    files |= {n: part.tobytes() for n, part in zip(names, parts, strict=True)}
  files = {layout.prefix + file: content for file, content in files.items()}
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(tar(files, "w:gz"))
  return records


def jpeg(rng, mode="RGB", kind="JPEG"):
  pixels = rng.integers(0, 256, (*rng.integers(20, 40, 2), 3), np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(pixels).convert(mode).save(buffer, kind)
  return buffer.getvalue()


def write_imagenet(folder, rng):
  """Writes the two tars; returns their paths and {file: bytes} by split."""
  odd = (("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"))
  by_class = {
    name: {f"{name}_{i}.JPEG": jpeg(rng, *how) for i, how in enumerate(odd)}
    for name in CLASSES
  }
  val = {f"ILSVRC2012_val_{i:08}.JPEG": jpeg(rng) for i in (3, 1, 2)}
  paths = folder / "train.tar", folder / "val.tar"
  tars = {f"{name}.tar": tar(files) for name, files in by_class.items()}
  for path, files in zip(paths, (tars, val), strict=True):
    path.write_bytes(tar(files))
  train = {k: v for files in by_class.values() for k, v in files.items()}
  return paths, train, val


def run(name, data_dir, *archives):
  flags = ["--archive", *map(str, archives)] if archives else []
  return prepare.main(["prepare", name, "--data_dir", str(data_dir), *flags])


def fails(capsys, words, name, data_dir, *archives):
  """Expects exit status 2, one line that has all the words, and no files."""
  assert run(name, data_dir, *archives) == 2
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1
  assert lines[0].startswith("error: ")
  for word in words:
    assert word in lines[0]
  if data_dir.is_dir():
    assert {path.name for path in data_dir.iterdir()} <= {"downloads"}


@pytest.mark.parametrize("name", CIFARS)
def test_cifar_is_read_back_to_the_bit(tmp_path, rng, name, publish, capsys):
  """Stock TFDS reads the set, and so do we; the archive is in its place."""
  file = {"cifar10": "cifar-10", "cifar100": "cifar-100"}[name]
  path = tmp_path / "downloads" / "manual" / f"{file}-binary.tar.gz"
  stored = write_cifar(path, name, rng)
  publish(name, path)
  assert run(name, tmp_path) == 0
  total, labels = len(stored["train"]), CIFARS[name]
  printed = capsys.readouterr().out
  assert f"{tmp_path / name / '3.0.2'} has {total} train, 6 test" in printed
  source = tfds.data_source(name, data_dir=tmp_path, download=False)
  for split, records in stored.items():
    assert len(source[split]) == len(records)
    assert len({example["id"] for example in source[split]}) == len(records)
    for example in source[split]:
      prefix, number = example["id"].decode().split("_")
      assert prefix == split
      numbers = records[int(number)][: len(labels)].tolist()
      assert [example[feature] for feature in labels] == numbers
      image = records[int(number)][len(labels) :].reshape(3, 32, 32)
      np.testing.assert_array_equal(example["image"], image.transpose(1, 2, 0))
  splits = data.load(data.Settings(name, str(tmp_path), validation_images=2))
  assert splits.num_classes == labels["label"]
  assert (splits.version, len(splits.test)) == ("3.0.2", 6)
  # Again: it is there, and needs no archive.
  path.unlink()
  assert run(name, tmp_path) == 0


def test_imagenet_keeps_bytes_and_labels(tmp_path, rng, publish, capsys):
  paths, train, val = write_imagenet(tmp_path, rng)
  publish("imagenet2012", *paths)
  out = tmp_path / "out"
  assert run("imagenet2012", out, *paths) == 0
  assert "has 12 train, 3 validation" in capsys.readouterr().out
  decoders = {"image": tfds.decode.SkipDecoding()}
  source = tfds.data_source(
    "imagenet2012", data_dir=out, download=False, decoders=decoders
  )
  found = {e["file_name"].decode(): e for e in source["train"]}
  assert {name: e["image"] for name, e in found.items()} == train
  labels = dict(zip(CLASSES, (0, 1, 999), strict=True))
  for name, example in found.items():
    assert example["label"] == labels[name.split("_")[0]]
  # The labels of the validation images are those of TFDS, by number.
  labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
  names = tfds.core.tfds_path("datasets/imagenet2012/labels.txt")
  names = names.read_text().split()
  expected = [names.index(n) for n in labels.read_text().split()[:3]]
  found = {e["file_name"].decode(): e for e in source["validation"]}
  assert {name: e["image"] for name, e in found.items()} == val
  assert [found[name]["label"] for name in sorted(val)] == expected
  # Images of all modes are decoded.
  settings = data.Settings(
    "imagenet2012", str(out), validation_images=2, image_size=16, resize=18
  )
  splits = data.load(settings)
  assert (splits.num_classes, len(splits.test)) == (1000, 3)
  everything = splits.train_and_validation
  batch = next(
    data.train_batches(everything, seed=0, batch_size=12, augment="imagenet")
  )
  assert batch["image"].shape == (12, 16, 16, 3)


@pytest.mark.parametrize(
  ("name", "file", "where"),
  [
    ("cifar100", "cifar-100-binary.tar.gz", "https://www.cs.toronto.edu/"),
    ("imagenet2012", "ILSVRC2012_img_train.tar", "after registration"),
  ],
)
def test_a_missing_archive_is_named_and_where_to_get_it(
  tmp_path, name, file, where, capsys
):
  place = tmp_path / "downloads" / "manual" / file
  words = [f"needed is {file}", where, str(place), "--archive PATH"]
  fails(capsys, words, name, tmp_path)
  given = [tmp_path / "x"] * (2 if name == "imagenet2012" else 1)
  fails(capsys, [f"no file {given[0]}", *words], name, tmp_path, *given)


def test_another_archive_or_a_damaged_one_is_refused(tmp_path, rng, capsys):
  path, out = tmp_path / "a.tar.gz", tmp_path / "out"
  write_cifar(path, "cifar10", rng)
  published = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
  words = [str(path), sha256(path), published, "get it again"]
  fails(capsys, words, "cifar10", out, path)
  assert not out.exists()


def test_a_disk_that_is_too_small_is_found_first(
  tmp_path, rng, capsys, monkeypatch
):
  paths = write_imagenet(tmp_path, rng)[0]
  monkeypatch.setattr(prepare, "_DISK_SHARE", 1e12)
  words = ["GB of free space, needed are"]
  fails(capsys, words, "imagenet2012", tmp_path / "out" / "below", *paths)


def test_the_number_of_archives_is_checked(tmp_path, capsys):
  words = ["--archive: got 1 for digits, allowed are 0, or none"]
  fails(capsys, words, "digits", tmp_path, "x")
  words = ["--archive: got 1 for imagenet2012, allowed are 2, or none"]
  fails(capsys, words, "imagenet2012", tmp_path, "x")


def test_the_command_makes_digits(tmp_path):
  command = [sys.executable, "-m", "hawis_jax.data", "prepare", "digits"]
  done = subprocess.run(
    [*command, "--data_dir", tmp_path],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  printed = f"{tmp_path}/digits/1.0.0 has 1,437 train, 360 test\n"
  assert (done.returncode, done.stdout, done.stderr) == (0, printed, "")
