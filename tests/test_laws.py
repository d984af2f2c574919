"""The laws of the package's structure, held by reading its imports."""

import ast
import functools
import pathlib

PACKAGE = pathlib.Path(__file__).parents[1] / "hawis_jax"
_MOST_LEVELS = 10
_MOST_AT_TOP = 6
# Rooms that know what a configuration or an experiment is.
_CONFIGURED = {"config", "pipeline", "main"}
# {room: what of the package it may import}.
_PURE = {
  "arithmetic": {"errors"},
  "crossbar": {"errors", "arithmetic"},
  "cost": {"errors", "arithmetic", "crossbar"},
}


@functools.cache
def _trees():
  """{path within the package: syntax tree}."""
  return {
    path.relative_to(PACKAGE): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
  }


def _room(path):
  return path.parts[0].removesuffix(".py")


def _modules():
  """{module: path}; a package is its __init__."""
  return {
    ".".join(("hawis_jax", *path.with_suffix("").parts)).removesuffix(
      ".__init__"
    ): path
    for path in _trees()
  }


def _imports(tree, modules):
  """The package's modules that a tree imports, wherever it does."""
  found = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom):
      names = [f"{node.module}.{alias.name}" for alias in node.names]
      found |= {n if n in modules else node.module for n in names}
    elif isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
  return found & modules.keys()


@functools.cache
def _arrows():
  """{path: paths that it imports}."""
  modules = _modules()
  return {
    path: {modules[m] for m in _imports(tree, modules)} - {path}
    for path, tree in _trees().items()
  }


def _level(node, arrows, below=()):
  """1 where nothing is imported; fails on a circle."""
  assert node not in below, f"a circle: {' -> '.join(map(str, (*below, node)))}"
  return 1 + max(
    (_level(n, arrows, (*below, node)) for n in arrows[node]), default=0
  )


def test_rooms_lie_on_few_levels_without_a_circle():
  rooms = {}
  for path, imported in _arrows().items():
    if path != pathlib.Path("__init__.py"):  # it imports when it is asked
      others = {_room(p) for p in imported} - {_room(path), "__init__"}
      rooms.setdefault(_room(path), set()).update(others)
  levels = {room: _level(room, rooms) for room in rooms}
  assert max(levels.values()) <= _MOST_LEVELS, levels


def test_no_module_imports_itself_through_others():
  # A package's __init__ gathers names for those outside of it.
  arrows = {
    path: {p for p in imported if p.name != "__init__.py"}
    for path, imported in _arrows().items()
  }
  for path in arrows:
    _level(path, arrows)


def test_few_modules_stand_at_the_top():
  assert len(list(PACKAGE.glob("*.py"))) <= _MOST_AT_TOP


def test_physics_arithmetic_and_cost_are_pure():
  for path, imported in _arrows().items():
    allowed = _PURE.get(_room(path))
    if allowed:
      others = {_room(p) for p in imported} - {_room(path), "__init__"}
      assert others <= allowed, path


def test_only_the_pipeline_reads_data():
  for path, imported in _arrows().items():
    if _room(path) not in ("data", "pipeline"):
      assert "data" not in {_room(p) for p in imported}, path


def test_only_config_and_pipeline_know_a_configuration():
  for path, tree in _trees().items():
    if _room(path) not in _CONFIGURED:
      names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
      names |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
      assert not names & {"ConfigDict", "Experiment"}, path


def test_modules_are_imported_under_their_own_names():
  for path, tree in _trees().items():
    for node in ast.walk(tree):
      if isinstance(node, ast.ImportFrom) and node.module:
        if node.module.split(".")[0] == "hawis_jax":
          assert not any(alias.asname for alias in node.names), path
