"""The configuration: its table, its checks, its files, its help."""

import json
import pathlib
import re
import sys

import hypothesis
from hypothesis import given
from hypothesis import reject
from hypothesis import strategies as st
import ml_collections
from ml_collections import config_dict
import numpy as np
import pytest
import short_run

from hawis_jax import crossbar
from hawis_jax import errors
from hawis_jax import main
from hawis_jax.config import describe
from hawis_jax.config import fields
from hawis_jax.config import load
from hawis_jax.config import settings
from hawis_jax.pipeline import results
from hawis_jax.runtime import storage

_FILE = pathlib.Path(short_run.CONFIG)
_NUMBERS = st.one_of(
  st.integers(-3, 40),
  st.floats(),
  st.floats(0, 1),
  st.sampled_from([10**400, -(10**400), 2**63, 1e300, True, None]),
)
_WORDS = st.one_of(
  st.text(max_size=5),
  st.sampled_from(
    [
      *("resnet20_hawis_a", "baseline_1x", "found", "multistep", "bfloat16"),
      *("random", "latency", "a\nb", "a\0b", "/", "s3://a", "x" * 5000),
    ]
  ),
)
_OBJECTS = st.sampled_from(
  [
    *(b"a", {1}, object(), len, np.zeros((2, 2)), np.float32(1.0), range(3)),
    *(pathlib.Path("a"), 1j, float, config_dict.ConfigDict({"a": 1})),
  ]
)
_KEYS = st.one_of(
  st.sampled_from(
    [*crossbar.SCENARIO_FIELDS, "name", "fault_map", "layers"]
    + ["placing", "spare_columns", "copies", "copied", 3, (1,)]
  ),
  st.text(max_size=3),
)
_ANYTHING = st.recursive(
  st.one_of(_NUMBERS, _WORDS, _OBJECTS),
  lambda item: st.one_of(
    st.tuples(),
    st.tuples(item, item),
    st.lists(item, max_size=3).map(tuple),
    st.lists(item, max_size=3),
    st.dictionaries(_KEYS, item, max_size=3),
    st.dictionaries(_KEYS, item, max_size=3).map(lambda x: (x,)),
  ),
  max_leaves=6,
)


def _with(name, value):
  """The default configuration with one field changed."""
  config = settings.default()
  *sections, last = name.split(".")
  section = config
  for part in sections:
    section = section[part]
  with config.unlocked():
    del section[last]  # or ml_collections would cast
    section[last] = value
  return config


def _complaint(config):
  """The one line about a configuration; "": it is valid."""
  try:
    settings.validate(config)
  except errors.InputError as error:
    assert len(str(error).splitlines()) == 1
    return str(error)
  return ""


@hypothesis.settings(max_examples=2000)
@given(name=st.sampled_from(list(fields.FIELDS)), value=_ANYTHING)
def test_any_value_in_any_field_is_valid_or_one_line(name, value):
  try:
    config = _with(name, value)
  except Exception:  # a dict's names, which ml_collections refuses at once
    assert isinstance(value, dict)
    reject()
  complaint = _complaint(config)
  assert not complaint or complaint.startswith("config.")
  kept = value if not isinstance(value, dict) else config  # no field takes it
  if not fields.FIELDS[name].accepts(kept):
    assert complaint.startswith(f"config.{name}: got "), complaint
    told, *_ = complaint.split("; did you mean ")
    assert told.endswith(f", allowed is {fields.FIELDS[name].allowed}")


@hypothesis.settings(max_examples=500)
@given(
  name=st.sampled_from(["search.scenarios", "robustness.scenarios"]),
  mix=st.lists(
    st.dictionaries(_KEYS, st.one_of(_NUMBERS, _ANYTHING), max_size=3),
    max_size=2,
  ),
)
def test_any_scenarios_are_valid_or_one_line(name, mix):
  complaint = _complaint(_with(name, tuple(mix)))
  assert not complaint or complaint.startswith(f"config.{name}")


@pytest.mark.parametrize(
  "name, value",
  [
    ("search.front", (10**400,)),
    ("search.entropy", (10**400, 0)),
    ("search.entropy", (0.1,)),
    ("search.limits", (([], 1),)),
    ("search.limits", (("latency", 10**400),)),
    ("search.methods", ([],)),
    ("search.methods", ("random", "random")),
    ("search.clip", float("nan")),
    ("search.clip", 0),
    ("search.updates", True),
    ("search.updates", 1.0),
    ("train.nets", (1,)),
    ("train.nets", "found"),
    ("train.ema", 1.0),
    ("train.optimizer.milestones", ("a",)),
    ("train.optimizer.milestones", (0.5, 0.5)),
    ("train.optimizer.milestones", None),
    ("space.choices", ((10**400,), (8,), (8,))),
    ("space.choices", None),
    ("space.technology", None),
    ("network.base_widths", None),
    ("network.base_widths", (16, 32, 0)),
    ("data.data_dir", None),
    ("data.data_dir", "s3://bucket"),
    ("device.preset", None),
    ("pretrain.distill", None),
    ("search.scenarios", np.zeros((2, 2))),
  ],
)
def test_mistakes_that_once_gave_a_traceback(name, value):
  complaint = _complaint(_with(name, value))
  assert re.match(rf"config\.{name}: got .*, allowed is ", complaint)


def test_values_that_can_not_be_printed():
  complaint = _complaint(_with("search.updates", 10**5000))
  assert "config.search.updates: got an unprintable int, allowed" in complaint


def test_the_defaults_are_valid_and_the_table_is_all_there_is():
  config = settings.default()
  assert not _complaint(config)
  flat = settings.flatten(config)
  assert flat.keys() == fields.FIELDS.keys()
  for name, field in fields.FIELDS.items():
    assert flat[name] == field.default and field.meaning and field.allowed
    kinds = (field.kind, type(None)) if field.default is None else field.kind
    assert isinstance(field.default, kinds)
  # A change of one is not another's.
  config.search.scenarios[0]["stuck_on"] = 1.0
  assert settings.default().search.scenarios[0]["device"] == 1.0


def test_missing_and_unknown_fields_are_named():
  config = settings.default()
  with config.unlocked():
    del config.search
  assert "config.search.budget: missing, allowed is a n" in _complaint(config)
  config = settings.default()
  config.train = 3
  assert _complaint(config).startswith("config.train.nets: missing")
  config = settings.default()
  with config.unlocked():
    config.search.budgt = 3
  assert _complaint(config) == "config.search.budgt: no such field"


def _bad_file(tmp_path, line):
  path = tmp_path / "bad.py"
  text = _FILE.read_text().replace("  return c", f"  {line}\n")
  path.write_text(f"from ml_collections import config_dict\n{text}")
  return path


@pytest.mark.parametrize(
  "line, message",
  [
    ("pass", "got a NoneType from get_config(), needed is"),
    ("return {}", "got a dict from get_config(), needed is"),
    ("exit()", "SystemExit: "),
    ("import sys; sys.exit(3)", "SystemExit: 3"),
    ("raise UnicodeDecodeError('a', b'', 0, 0, 'b')", "UnicodeDecodeError: "),
    ("raise ValueError('two\\nlines')", "ValueError: two lines"),
    ("c.zzzzzz = 3", "no field 'zzzzzz'"),
    ("c.serch = 3", "no field 'serch'; did you mean 'search'?"),
    ("c.serch.budget = 3", "no field 'serch'; did you mean 'search'?"),
    ("c.seed = config_dict.required_placeholder(int); return c", "missing"),
    ("None.a", "AttributeError: 'NoneType' object has no attribute 'a'"),
    ("del c.train; return c", "config.train.nets: missing"),
    ("c.seed = 1.5; return c", "config.seed: got 1.5, allowed is an integer"),
  ],
)
@pytest.mark.parametrize("override", [(), ("--config.seed=3",)])
def test_bad_files_get_one_line(run, tmp_path, capsys, line, message, override):
  if "del" in line:
    line = f"c.unlock(); {line}"
  if "seed" in line and override:
    line = line.replace("seed", "log_every")
    message = message.replace("seed", "log_every")
  path = _bad_file(tmp_path, line)
  arguments = dict(config=path, overrides=False)
  assert run(tmp_path / "run", *override, **arguments) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1 and message in error
  assert str(path) in error or error.startswith("error: config.")


@pytest.mark.parametrize(
  "text, message",
  [
    ("", "module 'config_file' has no attribute 'get_config'"),
    ("get_config = 3", "TypeError: 'int' object is not callable"),
    ("get_config(", "SyntaxError: "),
    ("import sys\nsys.exit()", "SystemExit: "),
    ("\0", "null bytes"),
    (None, "No such file or directory: "),
  ],
)
def test_files_that_are_no_configuration(run, tmp_path, capsys, text, message):
  path = tmp_path / "bad.py"
  if text is not None:
    path.write_text(text)
  assert run(tmp_path / "run", config=path, overrides=False) == 2
  error = capsys.readouterr().err
  assert error.startswith(f"error: --config={path}: ") and message in error
  assert error.count("\n") == 1


def test_the_last_of_a_tuple_wins(run, tmp_path, capsys):
  arguments = ("--config.train.nets=found", "--config.train.nets=best")
  assert run(tmp_path, *arguments) == 2
  assert "config.train.nets: got ('best',)" in capsys.readouterr().err
  assert run(tmp_path, "--config.train.nets=found_chip") == 2
  assert "did you mean 'found_chips'?" in capsys.readouterr().err
  arguments = ("--config.device.tile_shape=(1, 2)",) * 2
  arguments += ("--config.device.tile_shape=(3, 0)",)
  assert run(tmp_path, *arguments) == 2
  assert "config.device.tile_shape: got (3, 0)," in capsys.readouterr().err


def test_help_has_every_field_and_only_our_flags(capsys):
  assert main.run(["main", "--config=none.py", "--help"]) == 0
  out, error = capsys.readouterr()
  assert not error and max(map(len, out.splitlines())) <= 80
  for flag in ("--config:", "--workdir:", "--stages:"):
    assert f"  {flag} " in out
  words = " ".join(out.split())
  for name, field in fields.FIELDS.items():
    text = f"--config.{name}={field.default!r}: {field.meaning} "
    assert " ".join(text.split()) in words, name
  assert "logtostderr" not in out and "verbosity" not in out


def test_the_page_of_the_fields_is_up_to_date():
  path = _FILE.parents[1] / "docs" / "configuration.md"
  assert path.read_text() == describe.markdown(), describe.__doc__
  for name in fields.FIELDS:
    assert path.read_text().count(f"| `{name}`") == 1


def _begun(tmp_path):
  """A run of the default configuration in which training has begun."""
  config = settings.default()
  results.settle(config, tmp_path)
  (tmp_path / "train").mkdir()
  (tmp_path / "train" / "begun").write_text("")
  return config, tmp_path / "config.json"


def test_a_run_goes_on_that_is_older_than_a_field(tmp_path):
  config, path = _begun(tmp_path)
  record = storage.read_record(path)
  for name in ("train.ema", "device.cell_bits", "search.limits", "log_every"):
    del record[name]
  storage.write_record(path, record)
  results.settle(config, tmp_path)
  assert json.loads(path.read_text())["train.ema"] == 0.0
  storage.write_record(path, record)
  config.train.ema = 0.5
  with pytest.raises(errors.InputError, match="train.ema was 0.0, is 0.5"):
    results.settle(config, tmp_path)


def test_8_bit_nets_that_are_older_than_their_scales_had_published_ones(
  tmp_path,
):
  config, path = _begun(tmp_path)
  record = storage.read_record(path)
  del record["train.int8_scales"]
  for nets in ["found"], ["found", "found_int8"]:
    record["train.nets"] = config.train.nets = nets
    storage.write_record(path, record)
    if len(nets) == 1:  # the field does not matter
      results.settle(config, tmp_path)
  message = "train.int8_scales was 'tensor', is 'channel'"
  with pytest.raises(errors.InputError, match=message):
    results.settle(config, tmp_path)
  config.train.int8_scales = "tensor"
  results.settle(config, tmp_path)


def test_only_fields_that_are_free_may_change_in_a_begun_run(tmp_path):
  _begun(tmp_path)
  for name, field in fields.FIELDS.items():
    others = {int: 3, float: 0.5, str: "x", bool: None, tuple: ()}
    needed = ("device.", "scenarios", "techn", "space.cost")
    if any(part in name for part in needed):
      continue  # for what is resolved
    config = _with(name, others[field.kind])
    if field.default == others[field.kind]:
      continue
    if field.is_free:
      results.settle(config, tmp_path)
      continue
    section = name.split(".")[0]
    if section == "robustness":  # has not begun
      continue
    with pytest.raises(errors.InputError, match=f"config.{name} was "):
      results.settle(config, tmp_path)


def test_configurations_start_from_others(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(
    "from hawis_jax.config import load\n"
    f"def get_config(seed=1):\n  c = load.load({str(_FILE)!r})\n"
    "  c.seed = int(seed)\n  return c\n"
  )
  loaded = load.load(path, "7")
  assert isinstance(loaded, ml_collections.ConfigDict) and loaded.is_locked
  assert loaded.seed == 7 and loaded.data.levels == 8
  with pytest.raises(errors.InputError, match=r"mine.py: ValueError: invalid"):
    load.load(path, "a")
  assert "config_file" in sys.modules
