"""The embedded data set `digits`: a TFDS builder that needs no network.

The 1,797 images of scikit-learn's `load_digits`: the test part of the UCI
"Optical Recognition of Handwritten Digits" (13 writers), 8x8 pixels of values
0..16. scikit-learn's file does not tell the writers apart, so `train` and
`test` share writers: accuracy on `test` is that on known hands.
"""

import numpy as np
import tensorflow_datasets as tfds

NAME = "digits"

_CITATION = """@misc{alpaydin1998optical,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {Optical Recognition of Handwritten Digits},
  publisher = {UCI Machine Learning Repository},
  year = {1998},
  howpublished = {https://archive.ics.uci.edu/dataset/80},
}"""


class Digits(tfds.core.GeneratorBasedBuilder):
  """Builds scikit-learn's 8x8 digits: 1,437 to train on, 360 to test on.

  A pixel is min(255, 16 * value): of a thermometer code with thresholds
  (i + 0.5) * 256 / levels, 16 levels count the value exactly, and 8 levels its
  half, rounded down.
  """

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = {
      # Bytes take 28 us to read; an `Image`, which is PNG, takes 110 us.
      "image": tfds.features.Tensor(
        shape=(8, 8, 1), dtype=np.uint8, encoding="bytes"
      ),
      "label": tfds.features.ClassLabel(num_classes=10),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description=__doc__,
      features=tfds.features.FeaturesDict(features),
      supervised_keys=("image", "label"),
      homepage="https://archive.ics.uci.edu/dataset/80",
      citation=_CITATION,
      license="CC BY 4.0",
      disable_shuffling=True,  # records keep the order of the file
    )

  def _split_generators(self, dl_manager):
    from sklearn import datasets  # 1.8 s, needed only this once

    values, labels = datasets.load_digits(return_X_y=True)
    images = np.minimum(255, 16 * values).astype(np.uint8).reshape(-1, 8, 8, 1)
    train, test = split(labels)
    return {
      "train": self._generate_examples(images, labels, train),
      "test": self._generate_examples(images, labels, test),
    }

  def _generate_examples(self, images, labels, indices):
    for i in indices:
      yield int(i), {"image": images[i], "label": int(labels[i])}


def split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Splits stratified at random: every fifth image, class by class, is test.

  Returned are the indices int [4/5 B] of the training images, and [1/5 B] of
  the test images, of labels int [B].
  """
  # RandomState: its stream is frozen, that of `default_rng` is not.
  shuffled = np.random.RandomState(0).permutation(len(labels))
  by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
  is_test = np.arange(len(labels)) % 5 == 0
  return np.sort(by_class[~is_test]), np.sort(by_class[is_test])
