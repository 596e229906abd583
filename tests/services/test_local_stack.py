"""`everstep up` and `everstep demo` as a person runs them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import urllib.request
from pathlib import Path

import psutil

from tests.services.commands import EVERSTEP, environment
from tests.services.processes import PATIENCE_SECONDS, wait_for


def alive(process: psutil.Process) -> bool:
    """False also for a process that ended and that no parent has reaped yet."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Up:
    """`everstep up` in a folder, on free ports."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "up.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *EVERSTEP,
                    "up",
                    "--port",
                    "0",
                    "--trainer-port",
                    "0",
                    "--store-port",
                    "0",
                    "--dashboard-port",
                    "0",
                ],
                cwd=folder,
                env=environment(""),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def ready(self) -> str:
        """Its control plane's address, once all is up."""

        def address() -> str | None:
            assert self.process.poll() is None, self.log.read_text()
            found = re.search(r"ready: .*--address (\S+)", self.log.read_text())
            return found[1] if found else None

        return wait_for(address, "`everstep up` to be ready")


def healthy(address: str) -> bool:
    return subprocess.run([*EVERSTEP, "healthy", address], capture_output=True).returncode == 0


def shown(url: str) -> bool:
    with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer:
        return b"<title>Everstep</title>" in answer.read()


def test_up_keeps_its_services_running_and_takes_them_along(tmp_path: Path) -> None:
    up = Up(tmp_path)
    try:
        address = up.ready()
        assert healthy(address)
        dashboard = re.search(r"dashboard: (http://127.0.0.1:\d+/)", up.log.read_text())
        assert dashboard is not None
        assert shown(dashboard[1])
        second = subprocess.run(
            [*EVERSTEP, "up", "--port", "0"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        assert second.returncode == 3
        assert "another `everstep up` runs" in second.stderr

        killed = next(
            process
            for process in psutil.Process(up.process.pid).children()
            if process.cmdline()[-1] == "control_plane"
        )
        killed.kill()
        wait_for(lambda: "starting it again" in up.log.read_text(), "the control plane's death")
        wait_for(lambda: healthy(address), "the control plane to be back")
        assert shown(dashboard[1])

        children = psutil.Process(up.process.pid).children(recursive=True)
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(PATIENCE_SECONDS) == 0
        assert up.log.read_text().rstrip().endswith("stopped")
        assert not [child for child in children if alive(child)]
    finally:
        if up.process.poll() is None:
            os.killpg(up.process.pid, signal.SIGKILL)


def test_up_ends_what_a_killed_one_left_behind(tmp_path: Path) -> None:
    first = Up(tmp_path)
    first.ready()
    left = psutil.Process(first.process.pid).children()
    first.process.kill()
    first.process.wait()
    (tmp_path / "up.log").write_text("")
    second = Up(tmp_path)
    try:
        second.ready()
        assert not [process for process in left if alive(process)]
    finally:
        second.process.send_signal(signal.SIGINT)
        assert second.process.wait(PATIENCE_SECONDS) == 0


def test_the_demo_says_so_when_the_bytes_differ(tmp_path: Path) -> None:
    """The whole demo, with its comparison broken on purpose: only what was broken differs."""
    result = subprocess.run(
        [*EVERSTEP, "demo"],
        env={**environment(""), "EVERSTEP_DEMO_BREAK": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_SECONDS,
    )
    assert result.returncode == 1, result.stdout + result.stderr
    compared = {
        line.split()[0]: line.split()[-1]
        for line in result.stdout.splitlines()
        if line.endswith(("same", "DIFFERENT"))
    }
    assert compared.pop("weights") == "DIFFERENT"
    assert set(compared) == {"best_weights", "history", "optimizer", "progress", "state", "trace"}
    assert set(compared.values()) == {"same"}
    assert "signal SIGKILL" in result.stderr
    assert "the trainer has ended" in result.stderr
