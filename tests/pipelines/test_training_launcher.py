"""Processes: none outlives its work, one writer at a time, and a dead holder is seen as dead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.errors import InputError
from pipelines.training.launcher import EXIT_GUARD, Job, clear, distributed_jobs, launch, reconcile, training_jobs
from pipelines.training.lease import hold, process_started, read_lease

ROOT = Path(__file__).parents[2]

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"])
open("pids", "w").write(f"{os.getpid()} {child.pid}")
print("up", flush=True)
time.sleep(60)
"""

LAUNCHING = """
import sys
from pathlib import Path
from pipelines.training.launcher import Job, launch
launch([Job([sys.executable, "-c", Path("child.py").read_text()])], cwd=Path.cwd(), work_folder=Path("work"), on_line=print, grace_s=1)
"""


def script(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def wait_for(condition: Callable[[], bool], seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def gone(pids: list[int]) -> bool:
    return all(process_started(pid) is None for pid in pids)


def run(jobs: list[Job], folder: Path, grace_s: float = 1.0) -> tuple[list[int], list[str]]:
    lines: list[str] = []
    return launch(jobs, cwd=folder, work_folder=folder / "work", on_line=lines.append, grace_s=grace_s), lines


def test_lines_and_exit_codes_come_back_in_order_and_the_folder_is_free_again(tmp_path: Path) -> None:
    jobs = [
        Job(script("import os; print('value', os.environ['SPOKEN'])"), {"SPOKEN": "yes"}, "one"),
        Job(script("import os, sys; print('HOME' in os.environ); print('loud', file=sys.stderr)"), {"HOME": None}, "two"),
    ]
    codes, lines = run(jobs, tmp_path)
    assert codes == [0, 0]
    assert sorted(lines) == ["[two] False", "[two] loud", "value yes"]
    assert (tmp_path / "work" / "two.log").read_text().splitlines() == ["False", "loud"]
    assert read_lease(tmp_path / "work") is None


def test_one_failing_process_ends_the_others_and_their_stubborn_children(tmp_path: Path) -> None:
    failing = "import time, os\nwhile not os.path.exists('pids'): time.sleep(.02)\nraise SystemExit(3)"
    codes, _ = run([Job(script(failing), name="one"), Job(script(STUBBORN), name="two")], tmp_path, grace_s=0.5)
    assert codes == [3, 128 + signal.SIGKILL]
    assert gone([int(pid) for pid in (tmp_path / "pids").read_text().split()])


def test_ctrl_c_in_the_caller_leaves_no_process(tmp_path: Path) -> None:
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch([Job(script(STUBBORN))], cwd=tmp_path, work_folder=tmp_path / "work", on_line=interrupt, grace_s=0.3)
    assert gone([int(pid) for pid in (tmp_path / "pids").read_text().split()])


def test_asked_to_stop_a_trainer_gets_its_grace_and_its_own_exit_code(tmp_path: Path) -> None:
    polite = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: (time.sleep(.3), sys.exit(85)))\nprint('up', flush=True)\ntime.sleep(60)"
    waiting = "import time; time.sleep(.5); raise SystemExit(1)"
    codes, _ = run([Job(script(polite), name="one"), Job(script(waiting), name="two")], tmp_path, grace_s=5)
    assert codes == [85, 1]


ORPHANING = """
import signal, subprocess, sys, time
rank = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), open('saved', 'w').close(), sys.exit(85))); open('up', 'w').close(); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", rank])
time.sleep(60)
"""


def test_ranks_keep_their_grace_when_the_command_that_started_them_is_gone(tmp_path: Path) -> None:
    """As deepspeed's, which dies of SIGTERM at once."""
    waiting = "import os, time\nwhile not os.path.exists('up'): time.sleep(.05)\nraise SystemExit(1)"
    codes, _ = run([Job(script(ORPHANING), name="one"), Job(script(waiting), name="two")], tmp_path, grace_s=10)
    assert codes == [128 + signal.SIGTERM, 1] and (tmp_path / "saved").exists()


def test_a_warning_of_a_scheduler_is_passed_on_as_a_request_to_stop(tmp_path: Path) -> None:
    polite = "import os, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(85)); os.kill(os.getppid(), signal.SIGUSR1); time.sleep(60)"
    codes, _ = run([Job(script(polite), name="one")], tmp_path, grace_s=5)
    assert codes == [85]


def test_a_log_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "one.log").symlink_to("/dev/full")
    codes, lines = run([Job(script("for number in range(3000): print('a long line', number)"), name="one")], tmp_path)
    assert codes == [0] and lines.count("a long line 2999") == 1 and sum("one.log lacks lines" in line for line in lines) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_launcher_takes_its_trainers_along_and_leaves_a_lease_that_reconcile_finds(tmp_path: Path, number: int) -> None:
    folder = tmp_path / "work" / "asset" / "_" / "identity"
    (tmp_path / "child.py").write_text(STUBBORN)
    parent = subprocess.Popen(
        script(LAUNCHING.replace('Path("work")', f'Path("{folder}")')), cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert wait_for((tmp_path / "pids").exists) and wait_for(lambda: bool((tmp_path / "pids").read_text()))
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert reconcile(tmp_path) == []
    with pytest.raises(InputError, match=r"runs in .* already"), hold(folder, "second", wait_s=30):
        pass
    parent.send_signal(number)
    parent.wait(timeout=10)
    # The trainer has its grace still; a new start waits for it and then has the folder for itself.
    with hold(folder, "second", wait_s=20):
        assert gone(pids)
        lease = read_lease(folder)
        assert lease is not None and lease.alive() and lease.run_id == "second"


def test_dead_holder_is_reconciled_once(tmp_path: Path) -> None:
    folder = tmp_path / "work" / "asset" / "nano" / "abc"
    with hold(folder, "run-1", wait_s=0):
        lease = read_lease(folder)
        assert lease is not None
    (folder / "lease.json").write_text(json.dumps({**vars(lease), "pid_started": 1}))
    (stale,) = reconcile(tmp_path)
    assert stale.run_id == "run-1" and not stale.alive()
    assert replace(stale, host="elsewhere").alive()
    clear(stale)
    assert reconcile(tmp_path) == []


def test_only_rank_0_may_speak_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_PIPES_CONTEXT", "inherited")
    first, second = distributed_jobs("some.module", ["--spec", "s.json"], 2, threads=3, env={"DAGSTER_PIPES_MESSAGES": "given"})
    assert first.env["DAGSTER_PIPES_MESSAGES"] == "given" and "DAGSTER_PIPES_CONTEXT" not in first.env
    assert second.env["DAGSTER_PIPES_CONTEXT"] is None and second.env["DAGSTER_PIPES_MESSAGES"] is None
    assert (first.env["RANK"], second.env["RANK"]) == ("0", "1") and first.env["MASTER_PORT"] == second.env["MASTER_PORT"]
    assert second.env["OMP_NUM_THREADS"] == "3" and list(second.command)[1:] == ["-m", "some.module", "--spec", "s.json"]


STUBBORN_RANK = """
import os, pathlib, signal, sys, time
from pipelines.training.launcher import ENDED, die_with_parent
die_with_parent()
if sys.argv[1] == "ends":
    pathlib.Path("work", ENDED).write_text("86")
    sys.exit(86)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
print("up", flush=True)
time.sleep(60)
"""


def test_torchrun_passes_on_why_its_ranks_ended_and_leaves_none_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stubborn_rank.py").write_text(STUBBORN_RANK)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert run(training_jobs("stubborn_rank", ["ends"], 2, starter="torchrun"), tmp_path)[0] == [EXIT_GUARD]

    def interrupt(line: str) -> None:
        if line.endswith("up") and len(list(tmp_path.glob("pid-*"))) == 2:
            raise KeyboardInterrupt

    jobs = training_jobs("stubborn_rank", ["stays"], 2, starter="torchrun")
    with pytest.raises(KeyboardInterrupt):
        launch(jobs, cwd=tmp_path, work_folder=tmp_path / "work", on_line=interrupt, grace_s=1.0)
    assert wait_for(lambda: gone([int((tmp_path / f"pid-{rank}").read_text()) for rank in range(2)]))


def test_options_without_somebody_to_take_them_are_refused() -> None:
    with pytest.raises(InputError, match="torchrun or deepspeed"):
        training_jobs("anything", [], 2, options=["--nnodes", "2"])
