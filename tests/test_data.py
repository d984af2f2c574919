"""Tests of data and digits: what is read, in which order, and every error."""

import collections
import contextlib
import itertools
import json
import multiprocessing
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
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

from hawis_jax import data
from hawis_jax import errors
from hawis_jax.data import digits
from hawis_jax.data import prepare

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


def numbered(count, in_memory=True, records=None, shape=(2, 3, 1)):
  records, folder = records or Records(count), pathlib.Path("x")
  images = data.Images(records, folder, shape, in_memory=in_memory)
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
    labels = self.change.get("labels", {})
    return {
      name: self._generate_examples(count, labels.get(name))
      for name, count in splits.items()
    }

  def _generate_examples(self, count, label):
    for i in range(count):
      example = {
        "id": f"a{i}",
        "image": Image.fromarray(tiny_image(i)),
        "label": i % 3 if label is None else label,
      } | self.change.get("example", {})
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


def settings_of(data_dir, name="digits", validation_images=256, **fields):
  return data.Settings(name, str(data_dir), validation_images, **fields)


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
  prepare.prepare("digits", root)
  make_tiny(root, version="1.2.0", splits={"train": 12, "test": 12})
  make_tiny(root, version="1.9.0", splits={"train": 19, "test": 19})
  make_tiny(root, version="1.10.0", shards=3)
  make_tiny(root / "set", "small")
  return root


@pytest.fixture(scope="session")
def splits(data_dir):
  return data.load(settings_of(data_dir))


@pytest.fixture
def offline(monkeypatch):
  def connect(*_):
    raise AssertionError("the network was tried")

  monkeypatch.setattr(socket.socket, "connect", connect)
  monkeypatch.setattr(socket, "getaddrinfo", connect)


# digits


def test_digits_are_those_of_scikit_learn(data_dir):
  splits = data.load(settings_of(data_dir, validation_images=0))
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
  assert (read.dtype, splits.image_shape) == (np.int32, (8, 8, 1))
  # Random: not every fifth image of the file.
  assert len(set(test % 5)) == 5


def test_second_process_may_win_the_race(tmp_path, monkeypatch):
  rename = os.rename

  def late(source, target):
    monkeypatch.undo()
    prepare.prepare("digits", tmp_path)  # the other process, start to end
    rename(source, target)

  monkeypatch.setattr(os, "rename", late)
  prepare.prepare("digits", tmp_path)
  assert os.rename is rename  # the race took place
  assert [p.name for p in tmp_path.iterdir()] == ["digits"]
  assert len(data.load(settings_of(tmp_path)).test) == 360


def test_killed_preparation_leaves_no_data_set(tmp_path, monkeypatch):
  def killed(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
      prepare.prepare("digits", tmp_path)
  assert not list(tmp_path.glob("digits/*"))
  assert len(data.load(settings_of(tmp_path)).test) == 360


def _prepare_and_wait(data_dir, connection):
  """As a preparation that takes long, with files written."""

  def rename(*_):
    connection.send("ready")
    time.sleep(600)

  os.rename = rename
  prepare.prepare("digits", data_dir)


def test_what_a_killed_preparation_left_is_removed(tmp_path, capsys):
  """Up to 150 GB; not while it lives, and nothing that is named otherwise."""
  users = tmp_path / ".digits-mybackup"
  users.mkdir()
  here, there = multiprocessing.Pipe()
  context = multiprocessing.get_context("spawn")
  owner = context.Process(target=_prepare_and_wait, args=(tmp_path, there))
  owner.start()
  try:
    assert here.poll(60)
    (aside,) = tmp_path.glob(".digits-*.hawis_jax")
    prepare.prepare("digits", tmp_path)
    assert any(aside.iterdir())
  finally:
    owner.kill()
    owner.join()
  capsys.readouterr()
  prepare.prepare("digits", tmp_path)
  text = f"removing {aside}, which a killed preparation left\n"
  assert capsys.readouterr().out == text
  assert set(tmp_path.iterdir()) == {users, tmp_path / "digits"}


def test_processes_start_at_once_silently_and_agree(tmp_path, data_dir):
  script = """
import sys, zlib
from hawis_jax import data
train = data.load(data.Settings("digits", sys.argv[1], 256)).train
batches = data.train_batches(
  train, seed=3, batch_size=64, augment="flip_crop", start_step=20)
data.load(data.Settings("tiny", sys.argv[2]))
assert "tensorflow" not in sys.modules
print(zlib.crc32(next(batches)["image"].tobytes()))
"""
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", script, tmp_path, data_dir],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      cwd=ROOT,
      env=os.environ | {"PYTHONHASHSEED": seed},
    )
    for seed in "12"
  ]
  outputs = [process.communicate(timeout=60) for process in processes]
  train = data.load(settings_of(data_dir)).train
  batches = data.train_batches(
    train, seed=3, batch_size=64, augment="flip_crop"
  )
  batch = next(itertools.islice(batches, 20, None))
  assert outputs == [(f"{zlib.crc32(batch['image'].tobytes())}\n", "")] * 2
  assert [p.name for p in tmp_path.iterdir()] == ["digits"]


# load


def test_validation_is_held_out_of_train(data_dir, splits):
  whole = data.load(settings_of(data_dir, validation_images=0))
  for held_out in (0, 1, 256, 1436):
    part = data.load(settings_of(data_dir, validation_images=held_out))
    assert len(part.validation) == held_out
    assert not set(part.train.indices) & set(part.validation.indices)
    validation = rows(part.validation) if held_out else collections.Counter()
    assert rows(part.train) + validation == rows(whole.train)
    assert rows(part.train_and_validation) == rows(whole.train)
  assert rows(part.test) == rows(splits.test)


def test_validation_is_always_the_same_and_random(splits, data_dir):
  again = data.load(settings_of(data_dir)).validation
  assert_equal(splits.validation.read(range(256)), again.read(range(256)))
  smaller = data.load(settings_of(data_dir, validation_images=100)).validation
  np.testing.assert_array_equal(smaller.indices, again.indices[:100])
  assert abs(np.mean(again.indices) - 718) < 5 * 415 / 16  # uniform, 5 sigma


def test_large_sets_are_read_record_by_record(splits, data_dir, monkeypatch):
  monkeypatch.setattr(data.splits, "_IN_MEMORY_BYTES", 360 * 64 + 1)
  large = data.load(settings_of(data_dir))
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
  assert source.read([2999])["label"] == [2999]
  assert records.reads == 3000


def test_a_set_is_read_by_name_and_config(data_dir, offline):
  splits = data.load(settings_of(data_dir, "tiny", 10))
  assert (splits.image_shape, splits.num_classes) == ((4, 6, 3), 3)
  assert len(splits.test) == 7  # that of 1.10.0, the highest version
  for source in (splits.train, splits.validation):
    read = source.read(range(len(source)))
    images = np.stack([tiny_image(number) for number in source.indices])
    np.testing.assert_array_equal(read["image"], images)
    np.testing.assert_array_equal(read["label"], source.indices % 3)
  assert len(data.load(settings_of(data_dir, "set/small", 10)).train) == 20


def test_data_are_looked_for_where_tfds_does(data_dir, monkeypatch, tmp_path):
  monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
  assert len(data.load(settings_of("", "tiny", 1)).train) == 29
  monkeypatch.delenv("TFDS_DATA_DIR")
  monkeypatch.setenv("HOME", str(tmp_path))
  assert len(data.load(settings_of("")).train) == 1181
  assert (tmp_path / "tensorflow_datasets/digits/1.0.0").is_dir()


@pytest.mark.skipif(
  not (CIFAR_DIR / "cifar10").is_dir(), reason=f"no cifar10 in {CIFAR_DIR}"
)
def test_cifar10_in_shared_data(offline):
  splits = data.load(settings_of(CIFAR_DIR, "cifar10", 50))
  sizes = len(splits.train), len(splits.validation), len(splits.test)
  assert sizes == (49_950, 50, 5_000)
  folder = CIFAR_DIR / "cifar10" / "3.0.2"
  records = tfds.builder_from_directory(folder).as_data_source("train")
  numbers = splits.validation.indices[[0, 49]]
  got = splits.validation.images.decode(numbers)  # not all 50,000
  for i, number in enumerate(numbers):
    np.testing.assert_array_equal(got["image"][i], records[number]["image"])
    assert got["label"][i] == records[number]["label"]
  labels = splits.test.read(range(5_000))["label"]
  assert np.bincount(labels).tolist() == [500] * 10


# train_batches


@pytest.fixture(scope="session")
def resized(data_dir):
  settings = settings_of(data_dir, image_size=9, resize=10)
  return data.load(settings).train


@settings(max_examples=10, deadline=None)
@given(
  seed=st.integers(0, 2**32),
  batch_size=st.integers(1, 300),
  start=st.integers(0, 15),
  augment=st.sampled_from(data.AUGMENTATIONS),
  threads=st.integers(0, 3),
)
def test_a_resumed_run_sees_what_it_would_have_seen(
  resized, seed, batch_size, start, augment, threads
):
  arguments = dict(seed=seed, batch_size=batch_size, augment=augment)
  whole = data.train_batches(resized, **arguments)
  rest = data.train_batches(
    resized, **arguments, start_step=start, read_threads=threads
  )
  for batch in itertools.islice(whole, start, start + 3):
    assert batch["image"].shape == (batch_size, 9, 9, 1)
    assert batch["label"].shape == (batch_size,)
    assert_equal(batch, next(rest))


def test_the_order_of_a_seed_is_that_of_earlier_revisions(data_dir):
  """So that a run that goes on with a later one sees what it would have."""
  train = data.load(data.Settings("digits", str(data_dir))).train
  batch = next(iter(data.train_batches(train, seed=0, batch_size=24)))
  assert batch["label"].tolist() == (
    [9, 4, 1, 0, 1, 1, 4, 7, 3, 0, 5, 4, 8, 5, 4, 8, 3, 7, 8, 3, 4, 9, 4, 4]
  )
  assert int(batch["image"].sum()) == 119170


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
  other = data.train_batches(numbered(count), seed=seed + 1, batch_size=count)
  orders = {*map(tuple, epochs), tuple(next(other)["label"])}
  if count > 20:  # a chance of less than 1 in 20! that two orders are equal
    assert len(orders) == 4


def test_flip_crop_is_uniform_over_flips_and_shifts():
  # Records whose image is random, and determined by its number.
  class Noise(Records):
    def __getitems__(self, indices):
      return [{"image": noise[i], "label": i} for i in indices]

  noise = np.random.default_rng(0).integers(1, 256, (100, 16, 17, 2), np.uint8)
  padded = np.pad(noise, ((0, 0), (2, 2), (2, 2), (0, 0)))
  variant = {}
  for top, left, flip in itertools.product(range(5), range(5), (1, -1)):
    crops = padded[:, top : top + 16, left : left + 17][:, :, ::flip]
    for i, crop in enumerate(crops):
      variant[crop.tobytes()] = i, (top, left, flip)
  source = numbered(100, records=Noise(100), shape=(16, 17, 2))
  batches = data.train_batches(
    source, seed=0, batch_size=50, augment="flip_crop"
  )
  count = collections.Counter()
  for batch in itertools.islice(batches, 50):
    for image, label in zip(batch["image"], batch["label"], strict=True):
      number, how = variant[image.tobytes()]
      assert number == label
      count[how] += 1
  assert len(count) == 50
  # 2,500 draws, 50 expected of each: chi-square of 49 degrees of freedom (mean
  # 49, standard deviation 10).
  assert sum((n - 50) ** 2 / 50 for n in count.values()) < 49 + 5 * 10


def test_a_shard_reads_only_its_rows():
  source = numbered(12, in_memory=False)
  arguments = dict(seed=0, batch_size=12, read_threads=0)
  whole = next(data.train_batches(source, **arguments))
  before = source.images.records.reads
  part = next(data.train_batches(source, **arguments, shard=(1, 3)))
  assert source.images.records.reads - before == 4
  assert_equal(part, {key: value[4:8] for key, value in whole.items()})


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
  source = numbered(count, in_memory)
  batches = data.evaluation_batches(source, batch_size, limit)
  wanted = count if limit is None else limit
  shape = (-(-wanted // batch_size), batch_size)
  assert batches["image"].shape == (*shape, 2, 3, 1)
  assert batches["label"].shape == batches["mask"].shape == shape
  dtypes = dict(image=np.uint8, label=np.int32, mask=bool)
  assert {key: value.dtype for key, value in batches.items()} == dtypes
  labels = batches["label"][batches["mask"]]
  np.testing.assert_array_equal(labels, np.arange(wanted))
  images = batches["image"][batches["mask"]]
  np.testing.assert_array_equal(images[:, 0, 0, 0], labels)
  assert batches["mask"][:-1].all()
  stream = data.evaluation_stream(source, batch_size, limit)
  for i, batch in enumerate(stream):
    assert_equal(batch, {key: value[i] for key, value in batches.items()})


# Errors


def test_an_unknown_name_is_told_what_there_is(data_dir, offline):
  for name, rest in (
    ("CIFAR-10", "mean 'cifar10'"),
    ("tinny", "digits, set/small, tiny; did you mean 'tiny'"),
    ("qqqqqqqq", "holds: digits, set/small, tiny"),
  ):
    with fails(f"config.data.name: got '{name}'", rest):
      data.load(settings_of(data_dir, name))
  with fails("config.data.data_dir: no cifar10", "tiny;", "prepare cifar10"):
    data.load(settings_of(data_dir, "cifar10"))


def test_folders_that_are_none(tmp_path):
  with fails("config.data.data_dir: no cifar10 in", "absent", "no data set"):
    data.load(settings_of(tmp_path / "absent", "cifar10"))
  assert not (tmp_path / "absent").exists()
  (tmp_path / "file").write_text("in the way")
  for root in (tmp_path / "file", tmp_path / "file" / "below"):
    with fails("data_dir: cannot write digits to", "writable"):
      data.load(settings_of(root))


TENSOR = tfds.features.Tensor
UNFIT = {
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
  "label .*int64": dict(features={"label": tfds.features.Scalar(np.int64)}),
  "no labelled .*train": dict(example={"label": -1}),
}


@pytest.mark.parametrize(
  ("name", "counts", "labels", "test_images"),
  [
    ("sizes", dict(train=8, test=3, validation=2), {}, 3),
    ("sizes", dict(train=8, test=3, validation=2), dict(test=-1), 2),
    ("sizes", dict(train=8, validation=2), {}, 2),
    ("imagenet2012", dict(train=8, test=3, validation=2), {}, 2),
    ("sizes", dict(train=8, test=3), dict(test=-1), 0),
    ("sizes", dict(test=3), {}, 0),
  ],
)
def test_which_split_is_the_test(tmp_path, name, counts, labels, test_images):
  image = {"image": tfds.features.Image()}  # of any size
  make_tiny(tmp_path, name, splits=counts, labels=labels, features=image)
  settings = settings_of(tmp_path, name, 2, image_size=3, resize=4)
  if not test_images:
    wanted = "'test' or 'validation'" if "train" in counts else "'train'"
    with fails(
      "config.data.name: ", f"sizes/1.2.0 has no labelled images {wanted}"
    ):
      data.load(settings)
    return
  splits = data.load(settings)
  read = splits.test.read(range(len(splits.test)))
  assert read["image"].shape == (test_images, 3, 3, 3)


@pytest.mark.parametrize("got", UNFIT)
def test_sets_that_are_not_of_labelled_images_are_refused(tmp_path, got):
  make_tiny(tmp_path, **UNFIT[got])
  with fails("config.data.name: ", f"tiny/1.2.0 has {got}", "allowed is"):
    data.load(settings_of(tmp_path, "tiny", 1))


def test_files_of_another_format_do_not_serve(tmp_path):
  path = make_tiny(tmp_path) / "dataset_info.json"
  info = json.loads(path.read_text())
  path.write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
  with fails("config.data.name: ", "tfrecord files, allowed is array_record"):
    data.load(settings_of(tmp_path, "tiny", 1))


_EVIL = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"


@pytest.mark.parametrize("form", ["now", "field", "legacy", "json", "content"])
def test_code_beside_data_is_not_run(tmp_path, monkeypatch, form):
  """TFDS imports the classes that a set names, from the current folder too."""
  folder = make_tiny(tmp_path / "mydata")
  (folder.parents[1] / "evil.py").write_text(_EVIL)
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend("")
  path, name = folder / "features.json", "mydata.evil.X"
  legacy = {"type": name, "content": {}}
  inner = {"features": {"image": legacy}}
  top = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
  content = json.loads(path.read_text())
  features = content["featuresDict"]["features"]
  features["image"]["pythonClassName"] = name
  changed = {
    "now": content,
    "field": content | {"python_class_name": name} | {"pythonClassName": top},
    "legacy": {"type": top, "content": inner["features"]},
    "json": {
      "pythonClassName": top,
      "jsonFeature": {"json": json.dumps(inner)},
    },
    "content": {
      "type": top,
      "proto_cls": "tensorflow_datasets.FeaturesDict",
      "content": json.dumps(content["featuresDict"]),
    },
  }
  path.write_text(json.dumps(changed[form]))
  with fails("config.data.name: ", "a feature of the class 'mydata.evil.X'"):
    data.load(settings_of(folder.parents[1], "tiny", 1))
  assert not (folder.parents[1] / "ran").exists()


def truncate(path, size=30_000):
  os.truncate(path, size)


def _change_template(path):
  path.write_text(path.read_text().replace("{SPLIT}", "{SPLIT"))


DAMAGE = {
  "truncated": ("*-train.*", truncate),
  "truncated test": ("*-test.*", truncate),
  "truncated second file": ("*-train.*-00001-*", truncate),
  "empty": ("*-train.*-00002-*", lambda path: truncate(path, 0)),
  "missing": ("*-train.*-00000-*", os.remove),
  "no metadata": ("dataset_info.json", lambda path: truncate(path, 0)),
  "half metadata": ("dataset_info.json", lambda path: truncate(path, 100)),
  "another template": ("dataset_info.json", _change_template),
  "no features": ("features.json", os.remove),
  "no JSON": ("features.json", lambda path: path.write_text("{,")),
  "brackets": ("features.json", lambda path: path.write_text("[" * 9000)),
  "half features": ("features.json", lambda path: truncate(path, 100)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_found_at_once(tmp_path, damage):
  folder = make_tiny(tmp_path, shards=3)
  pattern, harm = DAMAGE[damage]
  harm(sorted(folder.glob(pattern))[0])
  with fails("config.data.data_dir: cannot read", re.escape(str(folder))):
    data.load(settings_of(tmp_path, "tiny", 1))


def test_damaged_record_is_found_when_read(tmp_path):
  prepare.prepare("digits", tmp_path)
  path = next(tmp_path.glob("digits/1.0.0/*-train.*"))
  with path.open("r+b") as file:
    file.seek(path.stat().st_size // 2)
    file.write(bytes(500))
  splits = data.load(settings_of(tmp_path))
  with fails("config.data.data_dir: cannot read", "digits/1.0.0"):
    next(data.train_batches(splits.train, seed=0, batch_size=8))


def test_damage_reaches_the_reader_as_one_line():
  for in_memory, threads in itertools.product((False, True), (0, 2)):
    source = numbered(10, in_memory, Records(10, damaged=True))
    batches = data.train_batches(
      source, seed=0, batch_size=10, read_threads=threads
    )
    with fails(r"config.data.data_dir: cannot read x \(chunk hash mismatch\)"):
      next(batches)


def test_sizes_out_of_range_are_refused(data_dir):
  source = numbered(10)
  for held_out in (-1, 30):
    with fails(
      f"config.data.validation_images: got {held_out}, allowed are 0 to 29"
    ):
      data.load(settings_of(data_dir, "tiny", held_out))
  for fields, message in (
    (dict(batch_size=0), "batch_size: got 0, allowed are 1 to 10"),
    (dict(batch_size=11), "batch_size: got 11, allowed are 1 to 10"),
    (dict(batch_size=9, shard=(0, 5)), "batch_size: got 9, .* multiples of 5"),
    (dict(batch_size=2, shard=(2, 2)), "shard: got process 2 of 2, .* 0 to 1"),
    (dict(batch_size=2, augment="flip"), "config.data.augment: got 'flip'"),
  ):
    with fails(message):
      data.train_batches(source, seed=0, **fields)
  for limit in (0, -1, 11):
    with fails(f"evaluation images: got {limit}, allowed are 1 to 10"):
      data.evaluation_batches(source, 4, limit)
  with fails("batch_size: got 0"):
    data.evaluation_batches(source, 0)
  empty = data.load(settings_of(data_dir, validation_images=0)).validation
  with fails("evaluation images: got 0"):
    data.evaluation_batches(empty, 4)
