"""Tests of data and digits: what is read, in which order, and every error."""

import collections
import contextlib
import itertools
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
from types import MappingProxyType
import zlib

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest
from sklearn import datasets
import tensorflow_datasets as tfds

from hawis_jax import config
from hawis_jax import data
from hawis_jax import errors
from hawis_jax.data import digits
from hawis_jax.data import splits as splits_lib

ROOT = pathlib.Path(__file__).resolve().parents[1]
CIFAR_DIR = ROOT.parent / "shared" / "data"


class Records:
  """A stand-in for a TFDS data source: image i is full of i, and so its label.

  Of a damaged one record 5 cannot be read.
  """

  def __init__(self, count, damaged=False):
    self.count = count
    self.damaged = damaged
    self.reads = 0

  def __len__(self):
    return self.count

  def __getitems__(self, indices):
    self.reads += len(indices)
    if self.damaged and 5 in indices:
      raise RuntimeError("chunk hash mismatch\nsecond line")
    image = np.ones((2, 3, 1), np.uint8)
    return [{"image": image * (i % 256), "label": i} for i in indices]


def numbered(count, in_memory=True, records=None):
  records = records or Records(count)
  images = data.Images(
    records, pathlib.Path("x"), (2, 3, 1), in_memory=in_memory
  )
  return data.Source(images, np.arange(count))


class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Random 4x6 PNGs, labels 0, 1, 2, 0, ...; variants by `change`."""

  VERSION = tfds.core.Version("1.2.0")
  change = MappingProxyType({})

  def _info(self):
    features = {
      "id": tfds.features.Text(),
      "image": tfds.features.Image(shape=(4, 6, 3)),
      "label": tfds.features.ClassLabel(num_classes=3),
    } | self.change.get("features", {})
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {name: feature for name, feature in features.items() if feature}
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    splits = self.change.get("splits", {"train": 30, "test": 7})
    return {name: self._generate_examples(n) for name, n in splits.items()}

  def _generate_examples(self, count):
    for i in range(count):
      example = {
        "id": f"a{i}",
        "image": Image.fromarray(tiny_image(i)),
        "label": i % 3,
      }
      example |= self.change.get("example", {})
      yield i, {k: v for k, v in example.items() if k in self.info.features}


def tiny_image(i):
  return np.random.default_rng(i).integers(0, 256, (4, 6, 3), np.uint8)


def make_tiny(root, name="tiny", version="1.2.0", shards=1, **change):
  """Prepares a variant of Tiny as root/name/version, and returns that."""
  values = dict(
    name=name, VERSION=tfds.core.Version(version), change=change, __doc__="T."
  )
  cls = type("Variant", (Tiny,), values, skip_registration=True)
  tfds.disable_progress_bar()
  cls(data_dir=root, file_format="array_record").download_and_prepare(
    download_config=tfds.download.DownloadConfig(num_shards=shards)
  )
  return root / name / version


def section(data_dir, name="digits", **fields):
  section = config.default().data
  section.update(name=name, data_dir=str(data_dir), **fields)
  return section


def rows(source):
  """Returns the multiset of (image, label) of a source."""
  read = source.read(range(len(source)))
  pairs = zip(read["image"], read["label"], strict=True)
  return collections.Counter((i.tobytes(), int(n)) for i, n in pairs)


def assert_equal(batch, other):
  assert batch.keys() == other.keys()
  for key, value in batch.items():
    assert value.dtype == other[key].dtype
    np.testing.assert_array_equal(value, other[key])


@contextlib.contextmanager
def fails(*patterns):
  """Expects an InputError of one line that has all patterns, in this order."""
  with pytest.raises(errors.InputError) as caught:
    yield
  assert re.fullmatch(".*".join(patterns) + ".*", str(caught.value))


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
  """A folder with digits, tiny 1.2.0, 1.9.0, 1.10.0 (3 files) and set/small."""
  root = tmp_path_factory.mktemp("data")
  digits.prepare(root)
  make_tiny(root, version="1.2.0", splits={"train": 12, "test": 12})
  make_tiny(root, version="1.9.0", splits={"train": 19, "test": 19})
  make_tiny(root, version="1.10.0", shards=3)
  make_tiny(root / "set", "small")
  return root


@pytest.fixture(scope="session")
def splits(data_dir):
  return data.load(section(data_dir))


@pytest.fixture
def offline(monkeypatch):
  def connect(*_):
    raise AssertionError("the network was tried")

  monkeypatch.setattr(socket.socket, "connect", connect)
  monkeypatch.setattr(socket, "getaddrinfo", connect)


# digits


def test_digits_sizes(splits):
  assert (splits.image_shape, splits.num_classes) == ((8, 8, 1), 10)
  assert splits.name == "digits"
  sizes = len(splits.train), len(splits.validation), len(splits.test)
  assert sizes == (1437 - 256, 256, 360)
  read = splits.test.read(range(360))
  assert read["image"].shape == (360, 8, 8, 1)
  assert read["image"].dtype == np.uint8
  assert read["label"].dtype == np.int32


def test_digits_are_those_of_scikit_learn(data_dir):
  splits = data.load(section(data_dir, validation_images=0))
  values, labels = datasets.load_digits(return_X_y=True)
  expected = collections.Counter(
    (tuple(v.astype(int)), int(n)) for v, n in zip(values, labels, strict=True)
  )
  found = collections.Counter()
  for pixels, label in rows(splits.train) + rows(splits.test):
    grey = np.frombuffer(pixels, np.uint8).astype(int)
    value = (grey + 1) // 16  # the inverse of min(255, 16 * value)
    np.testing.assert_array_equal(np.minimum(255, 16 * value), grey)
    # What the docstring says of 16 and of 8 thermometer levels.
    for levels, count in ((16, value), (8, value // 2)):
      thresholds = (np.arange(levels) + 0.5) * 256 / levels
      np.testing.assert_array_equal((grey[:, None] > thresholds).sum(1), count)
    found[tuple(value), label] += 1
  assert found == expected


def test_digits_split_is_stratified(splits):
  labels = datasets.load_digits().target
  train, test = digits.split(labels)
  assert sorted([*train, *test]) == list(range(1797))
  by_class = np.bincount(labels[test], minlength=10)
  assert np.all(np.abs(by_class - np.bincount(labels) / 5) < 1)
  read = splits.test.read(range(360))["label"]
  np.testing.assert_array_equal(read, labels[test])
  # Random: not every fifth image of the file.
  assert len(set(test % 5)) == 5


def test_second_process_may_win_the_race(tmp_path, monkeypatch, data_dir):
  rename = os.rename

  def late(source, target):
    if target == tmp_path / "digits" / "1.0.0":
      monkeypatch.setattr(os, "rename", rename)
      digits.prepare(tmp_path)  # the other process, from start to end
    rename(source, target)

  monkeypatch.setattr(os, "rename", late)
  digits.prepare(tmp_path)
  assert os.rename is rename  # the race took place
  assert [p.name for p in tmp_path.iterdir()] == ["digits"]
  ours, theirs = (
    data.load(section(root)).train.read(range(1181))
    for root in (tmp_path, data_dir)
  )
  assert_equal(ours, theirs)


def test_killed_preparation_leaves_no_data_set(tmp_path, monkeypatch):
  def killed(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
      digits.prepare(tmp_path)
  assert not list(tmp_path.glob("digits/*"))
  assert len(data.load(section(tmp_path)).test) == 360


def test_processes_start_at_once_silently_and_agree(tmp_path, data_dir):
  script = """
import json, sys, zlib
import ml_collections
from hawis_jax import data
section = ml_collections.ConfigDict(json.loads(sys.argv[1]))
batches = data.train_batches(
  data.load(section).train, seed=3, batch_size=64, augment="flip_crop",
  start_step=20)
checksum = zlib.crc32(next(batches)["image"].tobytes())
section.update(name="tiny", data_dir=sys.argv[2], validation_images=3)
data.load(section)
assert "tensorflow" not in sys.modules
print(checksum)
"""
  fields = section(tmp_path).to_json()
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", script, fields, str(data_dir)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      cwd=ROOT,
      env=os.environ | {"PYTHONHASHSEED": seed},
    )
    for seed in "12"
  ]
  outputs = [process.communicate(timeout=60) for process in processes]
  batches = data.train_batches(
    data.load(section(data_dir)).train,
    seed=3,
    batch_size=64,
    augment="flip_crop",
  )
  batch = next(itertools.islice(batches, 20, None))
  assert outputs == [(f"{zlib.crc32(batch['image'].tobytes())}\n", "")] * 2
  assert [p.name for p in tmp_path.iterdir()] == ["digits"]


# load


@pytest.mark.parametrize("held_out", [0, 1, 256, 1436])
def test_validation_is_held_out_of_train(data_dir, splits, held_out):
  whole = data.load(section(data_dir, validation_images=0))
  part = data.load(section(data_dir, validation_images=held_out))
  assert len(part.validation) == held_out
  assert not set(part.train.indices) & set(part.validation.indices)
  validation = rows(part.validation) if held_out else collections.Counter()
  assert rows(part.train) + validation == rows(whole.train)
  assert rows(part.test) == rows(splits.test)


def test_validation_is_always_the_same_and_random(splits, data_dir):
  again = data.load(section(data_dir)).validation
  assert_equal(splits.validation.read(range(256)), again.read(range(256)))
  smaller = data.load(section(data_dir, validation_images=100)).validation
  np.testing.assert_array_equal(smaller.indices, again.indices[:100])
  assert abs(np.mean(again.indices) - 718) < 5 * 415 / 16  # uniform, 5 sigma


def test_large_sets_are_read_record_by_record(splits, data_dir, monkeypatch):
  monkeypatch.setattr(splits_lib, "_IN_MEMORY_BYTES", 360 * 64 + 1)
  large = data.load(section(data_dir))
  assert splits.train.images.in_memory
  assert not large.train.images.in_memory
  assert large.test.images.in_memory  # 360 images are less than that
  ours, theirs = (
    data.train_batches(s.train, seed=1, batch_size=200) for s in (splits, large)
  )
  for _ in range(7):
    assert_equal(next(ours), next(theirs))


def test_memory_is_filled_at_the_first_read_and_once():
  records = Records(3000)
  source = numbered(3000, records=records)
  assert records.reads == 0
  batches = data.train_batches(source, seed=0, batch_size=8, read_threads=4)
  for batch in itertools.islice(batches, 500):
    np.testing.assert_array_equal(
      batch["image"][:, 0, 0, 0], batch["label"] % 256
    )
  assert source[2999]["label"] == 2999
  assert records.reads == 3000


def test_reads_a_set_by_name(data_dir, offline):
  splits = data.load(section(data_dir, "tiny", validation_images=10))
  assert (splits.image_shape, splits.num_classes) == ((4, 6, 3), 3)
  assert len(splits.test) == 7  # that of 1.10.0, the highest version
  for source in (splits.train, splits.validation):
    for i, number in enumerate(source.indices):
      np.testing.assert_array_equal(source[i]["image"], tiny_image(number))
      assert source[i]["label"] == number % 3


def test_reads_a_config_of_a_set(data_dir):
  splits = data.load(section(data_dir, "set/small", validation_images=10))
  assert len(splits.train) == 20


def test_default_data_dir(data_dir, monkeypatch, tmp_path):
  monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
  assert len(data.load(section("", "tiny", validation_images=1)).train) == 29
  monkeypatch.delenv("TFDS_DATA_DIR")
  monkeypatch.setenv("HOME", str(tmp_path))
  assert len(data.load(section("")).train) == 1181
  assert (tmp_path / "tensorflow_datasets/digits/1.0.0").is_dir()


@pytest.mark.skipif(
  not (CIFAR_DIR / "cifar10").is_dir(), reason=f"no cifar10 in {CIFAR_DIR}"
)
def test_cifar10(offline):
  splits = data.load(section(CIFAR_DIR, "cifar10", validation_images=50))
  assert (splits.image_shape, splits.num_classes) == ((32, 32, 3), 10)
  sizes = len(splits.train), len(splits.validation), len(splits.test)
  assert sizes == (49_950, 50, 5_000)
  folder = CIFAR_DIR / "cifar10" / "3.0.2"
  records = tfds.builder_from_directory(folder).as_data_source("train")
  for i in (0, 49):
    expected = records[splits.validation.indices[i]]
    got = splits.validation[i]
    np.testing.assert_array_equal(got["image"], expected["image"])
    assert got["label"] == expected["label"]
  labels = splits.test.read(range(5_000))["label"]
  assert np.bincount(labels).tolist() == [500] * 10


# train_batches


@settings(max_examples=10, deadline=None)
@given(
  seed=st.integers(0, 2**32),
  batch_size=st.integers(1, 1181),
  start=st.integers(0, 15),
  augment=st.sampled_from(("none", "flip_crop")),
  threads=st.integers(0, 3),
)
def test_resume(splits, seed, batch_size, start, augment, threads):
  arguments = dict(seed=seed, batch_size=batch_size, augment=augment)
  whole = data.train_batches(splits.train, **arguments)
  rest = data.train_batches(
    splits.train, **arguments, start_step=start, read_threads=threads
  )
  for batch in itertools.islice(whole, start, start + 3):
    assert batch["image"].shape == (batch_size, 8, 8, 1)
    assert batch["label"].shape == (batch_size,)
    assert_equal(batch, next(rest))


def test_resume_after_a_billion_images():
  far, near = (
    data.train_batches(
      numbered(50), seed=0, batch_size=32, start_step=start, read_threads=0
    )
    for start in (2**30, 2**30 - 1)
  )
  next(near)
  for _ in range(5):
    assert_equal(next(near), next(far))


@settings(max_examples=15, deadline=None)
@given(count=st.integers(1, 200), seed=st.integers(0, 2**40), share=st.data())
def test_each_epoch_has_every_image_once(count, seed, share):
  batch_size = share.draw(st.integers(1, count))
  batches = data.train_batches(
    numbered(count), seed=seed, batch_size=batch_size
  )
  taken = itertools.islice(batches, -(-3 * count // batch_size))
  labels = np.concatenate([batch["label"] for batch in taken])
  epochs = labels[: 3 * count].reshape(3, count)
  np.testing.assert_array_equal(
    np.sort(epochs, axis=1), np.tile(np.arange(count), (3, 1))
  )
  if count > 20:  # a chance of less than 1 in 20! that two orders are equal
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_seeds_differ():
  first = [
    next(data.train_batches(numbered(100), seed=seed, batch_size=100))["label"]
    for seed in (0, 1)
  ]
  assert not np.array_equal(*first)
  # Nor is epoch 1 of seed 0 epoch 0 of seed 1.
  second = next(
    data.train_batches(numbered(100), seed=0, batch_size=100, start_step=1)
  )
  assert not np.array_equal(second["label"], first[1])


def test_flip_crop_is_uniform_over_flips_and_shifts():
  # Records whose image is random, and determined by its number.
  class Noise(Records):
    def __getitems__(self, indices):
      return [{"image": noise[i], "label": i} for i in indices]

  noise = np.random.default_rng(0).integers(1, 256, (100, 6, 7, 2), np.uint8)
  padded = np.pad(noise, ((0, 0), (4, 4), (4, 4), (0, 0)))
  variant = {
    crop.tobytes(): (i, top, left, flip)
    for i, top, left, flip in itertools.product(
      range(100), range(9), range(9), (False, True)
    )
    for crop in [padded[i, top : top + 6, left : left + 7][:, :: 1 - 2 * flip]]
  }
  batches = data.train_batches(
    numbered(100, records=Noise(100)),
    seed=0,
    batch_size=50,
    augment="flip_crop",
  )
  seen = []
  for batch in itertools.islice(batches, 162):
    for image, label in zip(batch["image"], batch["label"], strict=True):
      number, *how = variant[image.tobytes()]
      assert number == label
      seen.append(tuple(how))
  count = collections.Counter(seen)
  assert len(count) == 162
  # 8,100 draws, 50 expected of each: chi-square of 161 degrees of freedom (mean
  # 161, standard deviation 18).
  assert sum((n - 50) ** 2 / 50 for n in count.values()) < 161 + 5 * 18


def test_none_leaves_images_alone(splits):
  batch = next(data.train_batches(splits.train, seed=0, batch_size=100))
  pairs = zip(batch["image"], batch["label"], strict=True)
  assert {(i.tobytes(), int(n)) for i, n in pairs} <= rows(splits.train).keys()


# evaluation_batches


@settings(max_examples=40, deadline=None)
@given(
  count=st.integers(1, 60),
  batch_size=st.integers(1, 70),
  in_memory=st.booleans(),
  share=st.data(),
)
def test_evaluation_counts_each_image_once(count, batch_size, in_memory, share):
  limit = share.draw(st.none() | st.integers(1, count))
  batches = data.evaluation_batches(
    numbered(count, in_memory), batch_size, limit
  )
  wanted = count if limit is None else limit
  shape = (-(-wanted // batch_size), batch_size)
  assert batches["image"].shape == (*shape, 2, 3, 1)
  assert batches["label"].shape == batches["mask"].shape == shape
  assert batches["image"].dtype == np.uint8
  assert batches["label"].dtype == np.int32
  assert batches["mask"].dtype == bool
  labels = batches["label"][batches["mask"]]
  np.testing.assert_array_equal(labels, np.arange(wanted))
  np.testing.assert_array_equal(
    batches["image"][batches["mask"]][:, 0, 0, 0], labels
  )
  assert batches["mask"][:-1].all()


# Errors


@pytest.mark.parametrize(
  ("name", "patterns"),
  [
    ("digit", ["config.data.name: got 'digit'", "set/small, tiny.*'digits'"]),
    ("CIFAR-10", ["config.data.name: got 'CIFAR-10'", "mean 'cifar10'"]),
    ("tinny", ["config.data.name: got 'tinny'", "mean 'tiny'"]),
    ("qqqqqqqq", ["config.data.name: got 'qqqqqqqq'", "holds: [a-z/, ]*"]),
    (
      "cifar10",
      [
        "config.data.data_dir: no cifar10",
        "digits, set/small, tiny",
        "prepare cifar10",
      ],
    ),
  ],
)
def test_unknown_name(data_dir, offline, name, patterns):
  with fails(*patterns):
    data.load(section(data_dir, name))


def test_absent_data_dir(tmp_path):
  with fails("config.data.data_dir: no cifar10 in", "absent", "no data set"):
    data.load(section(tmp_path / "absent", "cifar10"))
  assert not (tmp_path / "absent").exists()


def test_unwritable_data_dir(tmp_path):
  (tmp_path / "file").write_text("in the way")
  for root in (tmp_path / "file", tmp_path / "file" / "below"):
    with fails("data_dir: cannot write digits to", "writable"):
      data.load(section(root))


@pytest.mark.parametrize("held_out", [-1, 30, 1000])
def test_validation_out_of_range(data_dir, held_out):
  with fails(
    f"config.data.validation_images: got {held_out}, allowed are 0 to 29"
  ):
    data.load(section(data_dir, "tiny", validation_images=held_out))


TENSOR = tfds.features.Tensor
UNFIT = {
  "no labelled images 'test' or 'validation'": dict(splits={"train": 5}),
  "no labelled images 'train'": dict(splits={"test": 5}),
  "no feature 'label'": dict(features={"label": None}),
  "no feature 'image'": dict(features={"image": None}),
  "images that may differ": dict(features={"image": tfds.features.Image()}),
  "image .*float32": dict(
    features={"image": TENSOR(shape=(1, 1, 1), dtype=np.float32)},
    example={"image": np.zeros((1, 1, 1), np.float32)},
  ),
  "image .*shape=.3,.": dict(
    features={"image": TENSOR(shape=(3,), dtype=np.uint8)},
    example={"image": np.zeros(3, np.uint8)},
  ),
  "image FeaturesDict": dict(
    features={"image": {"a": tfds.features.Text()}},
    example={"image": {"a": ""}},
  ),
  "label .*int64": dict(features={"label": tfds.features.Scalar(np.int64)}),
  "no labelled .*train": dict(example={"label": -1}),
}


@pytest.mark.parametrize("got", UNFIT)
def test_unfit_data_set(tmp_path, got):
  make_tiny(tmp_path, **UNFIT[got])
  with fails("config.data.name: ", f"tiny/1.2.0 has {got}", "allowed is"):
    data.load(section(tmp_path, "tiny", validation_images=1))


def test_other_file_format(tmp_path):
  path = make_tiny(tmp_path) / "dataset_info.json"
  info = json.loads(path.read_text())
  path.write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
  with fails("config.data.name: ", "tfrecord files, allowed is array_record"):
    data.load(section(tmp_path, "tiny", validation_images=1))


def truncate(path, size=30_000):
  os.truncate(path, size)


DAMAGE = {
  "truncated": ("*-train.*", truncate),
  "truncated test": ("*-test.*", truncate),
  "truncated second file": ("*-train.*-00001-*", truncate),
  "empty": ("*-train.*-00002-*", lambda path: truncate(path, 0)),
  "missing": ("*-train.*-00000-*", os.remove),
  "no metadata": ("dataset_info.json", lambda path: truncate(path, 0)),
  "half metadata": ("dataset_info.json", lambda path: truncate(path, 100)),
  "no features": ("features.json", os.remove),
  "half features": ("features.json", lambda path: truncate(path, 100)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_found_at_once(tmp_path, damage):
  folder = make_tiny(tmp_path, shards=3)
  pattern, harm = DAMAGE[damage]
  harm(sorted(folder.glob(pattern))[0])
  with fails("config.data.data_dir: cannot read", re.escape(str(folder))):
    data.load(section(tmp_path, "tiny", validation_images=1))


def test_damaged_record_is_found_when_read(tmp_path):
  digits.prepare(tmp_path)
  path = next(tmp_path.glob("digits/1.0.0/*-train.*"))
  with path.open("r+b") as file:
    file.seek(path.stat().st_size // 2)
    file.write(bytes(500))
  splits = data.load(section(tmp_path))
  with fails("config.data.data_dir: cannot read", "digits/1.0.0"):
    next(data.train_batches(splits.train, seed=0, batch_size=8))


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("threads", [0, 2])
def test_damage_reaches_the_reader_as_one_line(in_memory, threads):
  source = numbered(10, in_memory, Records(10, damaged=True))
  batches = data.train_batches(
    source, seed=0, batch_size=10, read_threads=threads
  )
  with fails(r"config.data.data_dir: cannot read x \(chunk hash mismatch\)"):
    next(batches)


@pytest.mark.parametrize("batch_size", [0, -3, 11])
def test_train_batch_size(batch_size):
  with fails(f"batch_size: got {batch_size}, allowed are 1 to 10"):
    data.train_batches(numbered(10), seed=0, batch_size=batch_size)


def test_unknown_augmentation():
  with fails("config.data.augment: got 'flip', allowed are none, flip_crop"):
    data.train_batches(numbered(10), seed=0, batch_size=2, augment="flip")


@pytest.mark.parametrize("limit", [0, -1, 11])
def test_evaluation_limit(limit):
  with fails(f"evaluation images: got {limit}, allowed are 1 to 10"):
    data.evaluation_batches(numbered(10), 4, limit)


def test_evaluation_of_nothing(data_dir):
  empty = data.load(section(data_dir, validation_images=0)).validation
  with fails("evaluation images: got 0"):
    data.evaluation_batches(empty, 4)
  with fails("batch_size: got 0"):
    data.evaluation_batches(numbered(10), 0)
