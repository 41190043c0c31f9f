"""`procbus profile` on real scripts."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

BUS = """
    import sys, time
    from procbus import EventBus

    def fetch(event):
        time.sleep(0.01)

    bus = EventBus(handlers=[])
    bus.subscribe("event", fetch, name="fetch")
"""


def profiled(folder: Path, script: str, *arguments: str, **options: Any) -> Any:
    path = folder / "script.py"
    path.write_text(textwrap.dedent(script))
    return subprocess.run(
        [sys.executable, "-m", "procbus", "profile", str(path), *arguments],
        capture_output=True,
        text=True,
        timeout=150,
        **options,
    )


def with_bus(*lines: str) -> str:
    return textwrap.dedent(BUS) + "\n".join(lines) + "\n"


#: Publish until the bus knows the handler, however busy the machine is.
PUBLISH = """
while "waits for" not in str(bus.advice()):
    for receipt in [bus.publish("event", 1) for _ in range(64)]:
        receipt.wait()
"""


def test_the_advice_is_printed_at_the_end(tmp_path: Path) -> None:
    run = profiled(
        tmp_path, with_bus("with bus:", textwrap.indent(PUBLISH, "    "), "print('done')")
    )
    assert (run.returncode, run.stdout) == (0, "done\n")
    head, *_ = run.stderr.strip().splitlines()
    assert head == "procbus profile: the handlers"
    assert "fetch waits for" in run.stderr.splitlines()[-1]
    assert run.stderr.splitlines()[-1].endswith("io is right")


def test_a_bus_that_was_left_open_is_finished_first(tmp_path: Path) -> None:
    run = profiled(tmp_path, with_bus(PUBLISH))
    assert run.returncode == 0, run.stderr
    assert "fetch waits for" in run.stderr


def test_script_that_raises_is_reported_as_by_python(tmp_path: Path) -> None:
    run = profiled(tmp_path, with_bus(PUBLISH, "raise KeyError('broken')"))
    assert run.returncode == 1
    assert "fetch waits for" in run.stderr
    trace = run.stderr[: run.stderr.index("procbus profile")]
    assert trace.startswith("Traceback (most recent call last):\n  File ")
    assert "script.py" in trace.splitlines()[1]
    assert trace.strip().endswith("KeyError: 'broken'")


@pytest.mark.parametrize(
    ("code", "status", "said"), [("3", 3, ""), ("None", 0, ""), ("'no input'", 1, "no input\n")]
)
def test_the_exit_status_is_that_of_the_script(
    tmp_path: Path, code: str, status: int, said: str
) -> None:
    run = profiled(tmp_path, f"import sys\nsys.exit({code})")
    assert run.returncode == status
    assert run.stderr == said + (
        "procbus profile: the script used no bus, so there is nothing to say\n"
    )


def test_script_finds_the_same_surroundings_as_under_python(tmp_path: Path) -> None:
    script = """
        import sys, __main__
        import beside
        print(__name__, __file__ == __main__.__file__, sys.argv[1:], sys.path[0], __doc__)
        print(__spec__, __package__, __main__.beside is beside)
    """
    (tmp_path / "beside.py").write_text("")
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    arguments = ["--option", "x", "-h"]
    plain = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=150,
    )
    run = profiled(tmp_path, script, *arguments)
    assert run.returncode == 0, run.stderr
    assert run.stdout == plain.stdout


def test_cpu_handlers_of_the_script_run_in_workers(tmp_path: Path) -> None:
    script = """
        import os
        from dataclasses import dataclass
        from procbus import EventBus, subscribe

        @dataclass
        class Page:
            number: int

        @subscribe(kind="cpu")
        def where(page: Page) -> int:
            return os.getpid()

        with EventBus(cpu_workers=1) as bus:
            print(bus.publish(Page(1)).result() != os.getpid())
    """
    run = profiled(tmp_path, script)
    assert run.stdout == "True\n", run.stderr
    assert "__main__.where ran" in run.stderr


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_interrupted_script_is_reported_too(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    path = tmp_path / "script.py"
    # Short sleeps: Python 3.15 may heed a signal that comes in `print` only after the next call.
    then = "bus.drain()", "print('ready', flush=True)", "while True: time.sleep(0.01)"
    path.write_text(with_bus(PUBLISH, *then))
    run = subprocess.Popen(
        [sys.executable, "-m", "procbus", "profile", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    os.kill(run.pid, number)
    _, errors = run.communicate(timeout=150)
    assert run.returncode == status
    assert "fetch waits for" in errors


def test_a_script_that_is_not_there_is_named(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "procbus", "profile", str(tmp_path / "nothing.py")],
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert run.returncode == 2
    assert "cannot read the script" in run.stderr
    assert "nothing.py" in run.stderr
