"""The launch files: what they start, and what they do when it ends."""

import configparser
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys

import pytest
import yaml

_LAUNCH = pathlib.Path(__file__).parents[1] / "launch"
_SECONDS = 60  # a script that takes longer hangs
_FLAGS = ["--config=configs/digits.py", "--workdir=gs://b/r", '--x=("a b", $H']
_MAIN = ["-m", "hawis_jax.main", *_FLAGS, "--distributed"]
_RUN = ["run_tpu.sh", "a-b", "--zone=z"]
_CREATE = ["create_tpu.sh", "a-b", "--zone=z", "--type=v5litepod-16"]
_LOCAL = "local_multiprocess.sh"

# Stands for a program: notes its arguments, and gives the next of the answers,
# [status, stdout], to those that hold a given text.
_FAKE = f"""#!{sys.executable} -SE
import json, pathlib, sys
me = pathlib.Path(sys.argv[0])
with (me.parent / "calls").open("a") as file:
  file.write(json.dumps([me.name, *sys.argv[1:]]) + "\\n")
answers = me.parent / "answers"
known = json.loads(answers.read_text())
for text, queue in known.items():
  if text in " ".join(sys.argv):
    status, output = queue.pop(0) if len(queue) > 1 else queue[0]
    answers.write_text(json.dumps(known))
    print(output)
    sys.exit(status)
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
  """Runs a script; (status, stdout, stderr, calls of stand-ins)."""

  def run(name, *arguments, **answers):
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in ("gcloud", "srun", "scontrol", "sleep"):
      (folder / program).write_text(_FAKE)
      (folder / program).chmod(0o755)
    (folder / "answers").write_text(json.dumps(answers))
    (folder / "calls").touch()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    command = [_LAUNCH / name, *arguments]
    result = subprocess.run(
      command, capture_output=True, text=True, timeout=_SECONDS
    )
    lines = (folder / "calls").read_text().splitlines()
    calls = [json.loads(line) for line in lines if '"sleep"' not in line]
    return result.returncode, result.stdout, result.stderr, calls

  return run


def test_scripts_are_short_and_pass_shellcheck():
  for path in (*_LAUNCH.glob("*.sh"), *_LAUNCH.glob("*.yaml")):
    lines = path.read_text().splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 80, path
  command = ["shellcheck", *_LAUNCH.glob("*.sh")]
  result = subprocess.run(command, capture_output=True, text=True)
  assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
  "command, message",
  [
    (["create_tpu.sh", "a", "b", "--zone=z"], "NAME, --zone: got 'a b', 'z'"),
    ([*_RUN, "--", "--config=x"], "--workdir=FOLDER: missing"),
    (["slurm.sh", "--", *_FLAGS], "SLURM_JOB_ID: missing"),
    (["detached.sh", "name"], "NAME and COMMAND: got 1 words"),
    ([_LOCAL, "--processes=0"], "--processes: got '0', allowed are"),
    ([_LOCAL, "--processes=abc"], "--processes: got 'abc', allowed are"),
  ],
)
def test_mistakes_are_one_line(command, message, script, monkeypatch):
  monkeypatch.delenv("SLURM_JOB_ID", raising=False)
  status, output, error, calls = script(*command)
  assert (status, output, calls) == (2, "", [])
  assert error.startswith(f"error: {message}") and error.count("\n") == 1


@pytest.mark.parametrize(
  "command, last",
  [
    ([*_CREATE, "--dry-run", "--", "--spot"], ["--spot", "--zone=z"]),
    ([*_RUN, "--dry-run", "--", *_FLAGS], ["--zone=z", "--worker=all"]),
    (["slurm.sh", "--dry-run", "--", *_FLAGS], _MAIN),
    (["detached.sh", "--dry-run", "no/name", "a", "b c"], ["a", "b c"]),
    ([_LOCAL, "--dry-run", "--", *_FLAGS], _MAIN),
  ],
)
def test_dry_runs_print_commands_and_start_nothing(command, last, script):
  status, output, error, calls = script(*command)
  assert (status, error, calls) == (0, "", [])
  words = shlex.split(output.splitlines()[-1].partition(" '--coordinator")[0])
  assert words[-len(last) :] == last


@pytest.mark.parametrize(
  "states, steps, status",
  [
    (["", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"], ["create"], 0),
    (["ACTIVE"], [], 0),
    (["SUSPENDED", "ACCEPTED", "ACTIVE"], ["delete", "create"], 0),
    (["", "ACCEPTED", "FAILED"], ["create"], 1),
    (["", ""], ["create"], 1),
  ],
)
def test_a_tpu_slice_is_made_ready(states, steps, status, script):
  states = [[0, state] for state in states]
  result, *_, calls = script(*_CREATE, **{"queued-resources list": states})
  assert result == status
  assert [call[4] for call in calls if call[4] != "list"] == steps


@pytest.mark.parametrize(
  "ended, state, status",  # 255: ssh's own, to machines that are gone
  [(0, "READY", 0), (2, "", 2), (75, "READY", 75), (255, "", 75)],
)
def test_all_workers_install_and_run(ended, state, status, script):
  answers = {"detached.sh": [[ended, ""]], "describe": [[0, state]]}
  command = [*_RUN, "--setup=mount x", "--", *_FLAGS]
  result, *_, (copy, install, run, *_) = script(*command, **answers)
  assert (result, copy[4]) == (status, "scp")
  assert "mount x" in install[6]
  syntax = ["bash", "-n", "-c", install[6].partition("=")[2]]
  subprocess.run(syntax, check=True)
  assert shlex.split(run[6].partition("=")[2])[-len(_MAIN) :] == _MAIN


def test_no_run_starts_where_installing_fails(script):
  status, *_, calls = script(*_RUN, "--", *_FLAGS, uv=[[3, ""]])
  assert status == 3 and not any("detached.sh" in call[6] for call in calls)


def test_the_lock_has_the_versions_of_the_constraints_and_no_index():
  root = _LAUNCH.parent
  version = re.compile(
    r"^([a-z0-9_.-]+)==([^\s;]+)", re.IGNORECASE | re.MULTILINE
  )

  def pinned(name):
    found = version.findall((root / name).read_text())
    return {(re.sub("[-_.]+", "-", n).lower(), v) for n, v in found}

  lock = (root / "requirements.lock").read_text()
  assert "://" not in lock and "--index" not in lock
  entries = re.split(r"\n(?=\S)", lock.partition("requirements.lock\n")[2])
  assert len(entries) > 80
  assert all("--hash=sha256:" in entry for entry in entries)
  constraints = pinned("constraints.txt")
  names = {name for name, _ in constraints}
  ours = {pair for pair in pinned("requirements.lock") if pair[0] in names}
  assert len(ours) > 70 and ours <= constraints
  # All that setup.cfg asks for is locked.
  config = configparser.ConfigParser()
  config.read(root / "setup.cfg")
  needed = config["options"]["install_requires"]
  needed = re.findall(r"^([a-zA-Z][\w-]*)", needed, re.MULTILINE)
  assert {n.lower().replace("_", "-") for n in needed} <= {n for n, _ in ours}


def _start(*command, **options):
  options |= {"stdout": subprocess.PIPE, "text": True}
  command = [_LAUNCH / command[0], *command[1:]]
  return subprocess.Popen(command, start_new_session=True, **options)


@pytest.mark.slow
def test_a_lost_connection_finds_its_run_again_to_stop_it(script, tmp_path):
  runs = tmp_path / "hawis_jax_runs"
  # A run that ended, whose number another process has now.
  _start("detached.sh", runs / "0", "true").communicate(timeout=_SECONDS)
  (runs / "0.pid").write_text(f"{os.getpid()}\n")
  source = "trap 'exit 75' TERM; echo started; while :; do sleep 0.05; done"
  first = _start("detached.sh", runs / "1", "bash", "-c", source)
  assert first.stdout.readline() == "started\n"
  os.killpg(first.pid, signal.SIGKILL)
  first.communicate()
  again = _start("detached.sh", runs / "1", "bash", "-c", source)
  *_, (call,) = script(*_RUN, "--stop")
  stop = call[6].partition("=")[2]
  subprocess.run(["bash", "-c", stop], cwd=tmp_path, check=True)
  output, _ = again.communicate(timeout=_SECONDS)
  assert (output, again.returncode) == ("started\n", 75)  # once, shown again


@pytest.mark.slow
@pytest.mark.parametrize("presses, status", [(1, 75), (2, -signal.SIGINT)])
def test_ctrl_c_is_passed_on_and_a_second_one_does_not_wait(
  presses, status, tmp_path, nothing_ignored
):
  python = tmp_path / "python"
  end = "exit 75" if presses == 1 else "echo told"
  loop = "while :; do sleep 0.05; done"
  python.write_text(f"#!/bin/bash\ntrap '{end}' TERM; echo ready; {loop}\n")
  python.chmod(0o755)
  environment = os.environ | {"PYTHON": str(python)}
  options = "--processes=1", "--port=1", "--", *_FLAGS
  process = _start(_LOCAL, *options, env=environment)
  for line in ("ready\n", "told\n")[:presses]:
    assert process.stdout.readline() == line
    process.send_signal(signal.SIGINT)
  # To the output's end: no process is left that could write to it.
  process.communicate(timeout=_SECONDS)
  assert process.returncode == status


@pytest.mark.parametrize(
  "status, restarts, requeued",
  [(75, "4", True), (75, "5", False), (0, "0", False), (2, "0", False)],
)
def test_slurm_requeues_after_75_alone(
  status, restarts, requeued, script, monkeypatch
):
  monkeypatch.setenv("SLURM_JOB_ID", "17")
  monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
  monkeypatch.setenv("PYTHON", "my python")
  answers = {"hawis_jax.main": [[status, ""]]}
  result, *_, calls = script(
    "slurm.sh", "--retries=5", "--", *_FLAGS, **answers
  )
  assert result == status
  assert calls[0][3:] == ["my python", *_MAIN]
  assert calls[1:] == ([["scontrol", "requeue", "17"]] if requeued else [])
  # sbatch stops reading its options at the first line that is no comment.
  text = (_LAUNCH / "slurm.sh").read_text()
  head = re.match(r"(#.*\n)*", text)[0]
  assert head.count("\n#SBATCH --") == text.count("SBATCH --") > 0


def test_kubernetes_restarts_on_all_but_2():
  """Models that are generated from its APIs drop what they don't know."""
  models = pytest.importorskip("kubeflow_trainer_api.models")
  text = "---\n".join(
    path.read_text() for path in sorted(_LAUNCH.glob("*.yaml"))
  )
  contents = list(yaml.safe_load_all(text))
  claim, pod = (
    models.IoK8sApiCoreV1PersistentVolumeClaim,
    models.IoK8sApiCoreV1Pod,
  )
  kinds = models.JobsetV1alpha2JobSet, claim, pod
  for content, kind in zip(contents, kinds, strict=True):
    assert kind.from_dict(content).to_dict() == content
  job = contents[0]["spec"]["replicatedJobs"][0]["template"]["spec"]
  (rule,) = contents[0]["spec"]["failurePolicy"]["rules"]
  assert rule["action"] == "FailJobSet"
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  (fatal,) = job["podFailurePolicy"]["rules"]
  assert fatal["action"] == "FailJob"
  assert fatal["onExitCodes"]["values"] == [2]
  assert job["template"]["spec"]["restartPolicy"] == "Never"  # else refused
  # GKE's Autopilot mode refuses pods that are privileged.
  for spec in (job["template"]["spec"], contents[2]["spec"]):
    for container in spec["containers"]:
      context = container["securityContext"]
      assert "privileged" not in context
      assert context["allowPrivilegeEscalation"] is False
