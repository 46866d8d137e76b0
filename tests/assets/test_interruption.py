"""A training that is stopped from outside: nothing is left running, no run is stuck, and the next attempt goes on."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import dagster as dg
import pytest

from assets.reconcile import lives_since, reconcile_runs

REPOSITORY = Path(__file__).resolve().parents[2]
TRAINER = """
import os, pathlib, sys, time
from pipelines.reporting import configure_logging, open_reporter
configure_logging()
work = pathlib.Path(sys.argv[1])
(work / "pid").write_text(str(os.getpid()))
report = open_reporter(work)
if (work / "fails_once").exists():
    (work / "fails_once").unlink()
    raise SystemExit(137)
if (work / "hopeless").exists():
    raise SystemExit(86)
if (work / "quick").exists():
    report.log("went on")
    report.finish({"steps": 1})
    report.close()
    (work / "DONE.json").write_text("{}")
    raise SystemExit(0)
for step in range(600):
    report.log(f"step {step}")
    time.sleep(0.1)
"""
DRIVER = """
import sys
from pathlib import Path
import dagster as dg
from assets.bodies import Plan, blocking, carry_out
from assets.launchers import TrainLauncher
from assets.partitions import recipes
from assets.resources import StoreResource
from assets.runs import Run, Runner, Stage
from pipelines.checks import Check
from pipelines.errors import TubeletError
from pipelines.reporting import configure_logging
from pipelines.store import Store
from pipelines.training.launcher import Job

root = Path(sys.argv[1])

class Empty(dg.Config):
    pass

def plan(store, recipe, config):
    def build(task):
        task.work_folder.mkdir(parents=True, exist_ok=True)
        (root / "work").write_text(str(task.work_folder))
        seen = []
        def observe():
            seen.append(1)
            if len(seen) == 1:  # a picture that cannot be drawn ends no training
                raise OSError("No space left on device")
            return {"loss": 0.5}
        task.train([Job([sys.executable, str(root / "trainer.py"), str(task.work_folder)])], [task.work_folder / "DONE.json"], observe=observe)
        (task.folder / "result").write_text("trained")
        return {"steps": 1}
    return Plan("trained", build, lambda artefact: {"whole": Check(True, "whole", "whole")}, partition=recipe)

@dg.asset(partitions_def=recipes, check_specs=blocking("trained", "whole"))
def trained(context: dg.AssetExecutionContext, config: Empty, storage: StoreResource, trainer: TrainLauncher) -> dg.MaterializeResult:
    return carry_out(context, storage, lambda store: plan(store, context.partition_key, None), trainer)

configure_logging()
store = Store.open(root / "store")
definitions = dg.Definitions(
    assets=[trained], jobs=[dg.define_asset_job("recipe", ["trained"])],
    resources={"storage": StoreResource(root=str(store.root)), "trainer": TrainLauncher(grace_s=3, pause_s=0.1, observe_every_s=0.2)},
)
instance = dg.DagsterInstance.from_config(str(root))
try:
    Runner(store, instance, {}, {"trained": Stage(plan, Empty())}, definitions).bring_up(Run("recipe", "smoke", ["trained"]))
except TubeletError as error:
    print(error, file=sys.stderr)
    raise SystemExit(2)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "dagster.yaml").write_text(
        f"telemetry: {{enabled: false}}\nstorage: {{sqlite: {{base_dir: {tmp_path}/dagster}}}}\n"
    )
    (tmp_path / "trainer.py").write_text(TRAINER)
    (tmp_path / "driver.py").write_text(textwrap.dedent(DRIVER))
    return tmp_path


def start(home: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        [sys.executable, str(home / "driver.py"), str(home)], cwd=REPOSITORY, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def trainer_pid(home: Path, process: subprocess.Popen[str]) -> int:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if (home / "work").exists():
            pid = Path((home / "work").read_text()) / "pid"
            if pid.exists() and pid.read_text():
                return int(pid.read_text())
        if process.poll() is not None:
            break
        time.sleep(0.1)
    process.kill()
    raise AssertionError(f"the trainer did not start: {process.communicate()[0]}")


def wait_gone(pid: int, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def go_on(home: Path) -> str:
    """Let the next trainer end quickly; returns the driver's output."""
    Path((home / "work").read_text(), "quick").touch()
    process = start(home)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def test_ctrl_c_ends_run_and_trainer_and_the_next_attempt_finishes(home: Path) -> None:
    process = start(home)
    pid = trainer_pid(home, process)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and "run the same command again to go on" in output, output
    assert "no observation this time: OSError: No space" in output
    assert wait_gone(pid)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert {run.status for run in instance.get_runs()} <= {dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}
        (seen,) = instance.fetch_observations(dg.AssetKey("trained"), limit=1).records
        assert seen.asset_observation.metadata["loss"].value == 0.5 and seen.asset_observation.partition == "smoke"
    assert "went on" in go_on(home)


def test_killed_worker_leaves_no_trainer_and_reconcile_ends_its_run(home: Path) -> None:
    process = start(home)
    pid = trainer_pid(home, process)
    process.kill()
    process.wait()
    assert wait_gone(pid)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        (run,) = instance.get_runs()
        assert run.status == dg.DagsterRunStatus.STARTED
        assert reconcile_runs(instance) == [run.run_id]
        assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE
        assert reconcile_runs(instance) == []
    assert "went on" in go_on(home)


def test_passing_failure_is_retried_from_the_checkpoint_and_a_permanent_one_is_not(home: Path) -> None:
    process = start(home)
    trainer_pid(home, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    work = Path((home / "work").read_text())
    (work / "hopeless").touch()
    process = start(home)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and "exit codes [86]" in output and "starting again" not in output, output
    (work / "hopeless").unlink()
    (work / "fails_once").touch()
    assert "starting again from the newest checkpoint" in go_on(home)


def test_process_number_used_again_after_a_reboot_does_not_count_as_living() -> None:
    from datetime import datetime, timedelta

    assert lives_since(os.getpid(), datetime.now())
    assert not lives_since(os.getpid(), datetime.now() - timedelta(days=365))
