"""Data sets of the user's own arrays: what is read, and what is refused."""

import pathlib
import re
import zipfile

import numpy as np
import pytest

from hawis_jax import data
from hawis_jax import errors
from hawis_jax.data import arrays

_SHAPE = (5, 4, 3)


@pytest.fixture
def content(rng):
  def labelled(count):
    images = rng.integers(0, 256, (count, *_SHAPE), np.uint8)
    return images, np.arange(count) % 7

  x_train, y_train = labelled(30)
  x_test, y_test = labelled(9)
  return dict(x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


def _load(path, **fields):
  return data.load(data.Settings("npz", str(path), **fields))


def test_a_file_of_arrays_is_a_data_set(content, tmp_path):
  path = tmp_path / "mine.npz"
  np.savez_compressed(path, classes=np.array(["a", "b"]), **content)
  splits = _load(path, validation_images=10)
  assert (splits.name, splits.version) == ("npz", "")
  assert splits.image_shape == _SHAPE and splits.num_classes == 7
  test = splits.test.read(range(9))
  np.testing.assert_array_equal(test["image"], content["x_test"])
  np.testing.assert_array_equal(test["label"], content["y_test"])
  train = splits.train_and_validation.read(range(30))
  np.testing.assert_array_equal(train["image"], content["x_train"])
  np.testing.assert_array_equal(train["label"], content["y_train"])
  parts = [splits.train.indices, splits.validation.indices]
  assert sorted(np.concatenate(parts)) == list(range(30))
  facts = splits.facts()
  assert facts["train"] == 30 and facts["num_classes"] == 7
  content["x_train"][3, 2, 1, 0] ^= 1
  np.savez(path, **content)
  changed = _load(path, validation_images=10).facts()
  assert changed["train_digest"] != facts["train_digest"]
  assert changed["test_digest"] == facts["test_digest"]


def test_the_example_of_the_documentation_runs(content, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  page = pathlib.Path(__file__).parents[1] / "docs" / "own_data_and_devices.md"
  blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
  exec(next(code for code in blocks if "x_train" in code), dict(content))
  assert len(_load("mine.npz").test) == 9


def test_grey_images_need_no_axis_of_channels(content, tmp_path):
  path = tmp_path / "grey.npz"
  for name in ("x_train", "x_test"):
    content[name] = content[name][..., 0]
  np.savez(path, **content)
  splits = _load(path)
  assert splits.image_shape == (5, 4, 1)
  read = splits.test.read(range(9))["image"]
  np.testing.assert_array_equal(read[..., 0], content["x_test"])
  # As any others they may be resized.
  small = _load(path, image_size=2, resize=3)
  assert small.test.read([0])["image"].shape == (1, 2, 2, 1)


@pytest.mark.parametrize(
  "change, message",
  [
    (
      dict(x_train=None),
      "got arrays x_test, y_test, y_train, missing are x_tr",
    ),
    (
      dict(x_train=np.zeros((30, 5, 4, 3), np.float32)),
      "train, images: got float32, needed is uint8, from 0 to 255; of x from 0",
    ),
    (
      dict(x_test=np.zeros((9, 60), np.uint8)),
      "test, images: got shape (9, 60)",
    ),
    (
      dict(x_test=np.zeros((9, 5, 0), np.uint8)),
      "got shape (9, 5, 0, 1), need",
    ),
    (
      dict(x_test=np.zeros((9, 4, 5, 3), np.uint8)),
      "of images (4, 5, 3), need",
    ),
    (
      dict(y_test=np.arange(8)),
      "test, labels: got int64 of shape (8,), needed",
    ),
    (dict(y_test=np.eye(9, dtype=int)), "labels: got int64 of shape (9, 9)"),
    (dict(y_test=np.zeros(9)), "test, labels: got float64 of shape (9,), need"),
    (dict(y_test=np.arange(9) - 1), "test, labels: got -1 to 7, allowed are"),
    (dict(y_test=np.arange(9)), "got class 8 in y_test, allowed are those of"),
    (dict(y_train=np.arange(30) % 7 + 1), "got no image of class 0 in y_train"),
    (dict(y_train=np.full(30, 2**40)), "train, labels: got 1099511627776 to"),
    (
      dict(y_train=np.zeros(30, int), y_test=np.zeros(9, int)),
      "has 1 class of",
    ),
    (dict(x_test=np.array([{}])), "can't be read as .npz: ValueError: Object"),
  ],
)
def test_arrays_that_do_not_fit_are_named(content, tmp_path, change, message):
  content = {k: v for k, v in (content | change).items() if v is not None}
  np.savez(tmp_path / "mine.npz", **content)
  with pytest.raises(errors.InputError, match=re.escape(message)) as caught:
    _load(tmp_path / "mine.npz")
  assert "\n" not in str(caught.value) and "mine.npz" in str(caught.value)


def test_damaged_files_are_one_line(content, tmp_path):
  path = tmp_path / "mine.npz"
  np.savez_compressed(path, **content)
  whole = path.read_bytes()
  for damaged in (
    b"",
    whole[:700],
    whole[:900] + b"x" + whole[901:],
    b"\0" * 99,
  ):
    path.write_bytes(damaged)
    with pytest.raises(errors.InputError, match="mine.npz: ") as caught:
      _load(path)
    assert "\n" not in str(caught.value)
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("x_train.npy", b"\x93NUMPY\x01\x00" + b"\xff" * 20)
  with pytest.raises(errors.InputError, match="mine.npz: "):
    _load(path)


@pytest.mark.parametrize("name", ["", "none.npz", ".", "mine.txt", "~nobody/x"])
def test_what_is_no_file_is_named(tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "mine.txt").write_text("")
  with pytest.raises(errors.InputError, match="config.data.data_dir: got '"):
    _load(name)


def test_an_unknown_name_is_told_how_to_bring_arrays(tmp_path):
  with pytest.raises(errors.InputError, match=r"np.savez\('mine.npz', x_train"):
    data.load(data.Settings("mydata", str(tmp_path)))


def test_arrays_in_memory_are_checked():
  images, labels = arrays.arrays(np.zeros((2, 3, 4), np.uint8), [0, 5])
  assert images.shape == (2, 3, 4, 1) and labels.dtype == np.int32
  with pytest.raises(errors.InputError, match="arrays, images: got float64, n"):
    arrays.arrays(np.zeros((2, 3, 4)), [0, 5])
