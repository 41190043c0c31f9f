"""Workers have the interpreter's flags, the settings and the streams of their script."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from procbus import EventBus
from tests.integration.conftest import Run
from tests.integration.helpers import PATIENCE_S, ROOT
from tests.matrix import quick_first

SCRIPT = """
import logging, os, sys, warnings
sys.path.append(ROOT)
SET
from procbus import EventBus

def look():
    return LOOK

def same(_):
    return look()

with EventBus([], cpu_workers=1) as bus:
    bus.subscribe("n", same, kind="cpu")
    found, wanted = bus.publish("n", 1).result(55), look()
    bus.publish("n", 2).result(55)
with open("found", "w") as file:
    print(found == wanted, found, wanted, file=file)
"""


def run_with(
    folder: Path, look: str, *flags: str, before: str = "pass", shell: str = ""
) -> tuple[str, int, str]:
    """Run the script; return the settings it found, its exit code and its stderr."""
    job = folder / "job.py"
    text = SCRIPT.replace("ROOT", repr(str(ROOT))).replace("LOOK", look)
    job.write_text(text.replace("SET", before))
    command = ["sh", "-c", f'exec "$@" {shell}', "sh", sys.executable, *flags, str(job)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    ended = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    found = folder / "found"
    return found.read_text() if found.exists() else "", ended.returncode, ended.stderr


@pytest.mark.parametrize(
    ("flags", "look"),
    quick_first(
        [
            (["-O"], "sys.flags.optimize"),
            (["-X", "dev"], "sys.flags.dev_mode"),
            (["-W", "error"], "warnings.filters[0]"),
            (["-OO"], "sys.flags.optimize"),
            (["-B"], "sys.flags.dont_write_bytecode"),
            (["-bb"], "sys.flags.bytes_warning"),
            (["-E"], "sys.flags.ignore_environment"),
            (["-s"], "sys.flags.no_user_site"),
            (["-I"], "sys.flags.isolated"),
            (["-P"], "sys.flags.safe_path"),
            (["-W", "error::UserWarning"], "warnings.filters[0]"),
            (["-X", "utf8"], "sys.flags.utf8_mode"),
            (["-X", "int_max_str_digits=0"], "sys.get_int_max_str_digits()"),
            (["-X", "mine=7"], "sys._xoptions.get('mine')"),
        ],
        3,
    ),
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_of_the_interpreter_hold_in_workers(
    tmp_path: Path, flags: list[str], look: str
) -> None:
    found, code, err = run_with(tmp_path, look, *flags)
    assert (found[:4], code) == ("True", 0), err


@pytest.mark.parametrize(
    ("before", "look"),
    quick_first(
        [
            ("sys.setrecursionlimit(9000)", "sys.getrecursionlimit()"),
            ("sys.set_int_max_str_digits(0)", "sys.get_int_max_str_digits()"),
            ("sys.setswitchinterval(0.5)", "sys.getswitchinterval()"),
            ("os.umask(0o027)", "(lambda u: (os.umask(u), u)[1])(os.umask(0))"),
            ("warnings.simplefilter('error')", "warnings.filters"),
            ("warnings.filterwarnings('ignore', 'some.*', UserWarning)", "warnings.filters[0]"),
            (
                "import locale; locale.setlocale(locale.LC_ALL, 'C.UTF-8')",
                "__import__('locale').setlocale(0)",
            ),
            (
                "import multiprocessing as m; m.set_start_method('spawn')",
                "__import__('multiprocessing').get_start_method()",
            ),
            ("pass", "__import__('multiprocessing').get_start_method()"),
            ("pass", "__import__('gc').isenabled()"),
        ],
        3,
    ),
)
def test_settings_of_the_script_hold_in_workers(tmp_path: Path, before: str, look: str) -> None:
    found, code, err = run_with(tmp_path, look, before=before)
    assert (found[:4], code) == ("True", 0), err


ODD = """
class Odd:
    encoding = "utf-8"
    def write(self, text): return len(text)
    def flush(self): FLUSH
    def fileno(self): FILENO
sys.stdout = Odd(); sys.stderr = Odd()
"""


@pytest.mark.parametrize(
    "before",
    quick_first(
        [
            "sys.stdin = sys.stdout = sys.stderr = None",
            "sys.stdout = None",
            "sys.stdout.close()",
            "sys.stderr.close()",
            "import io; sys.stdout = io.StringIO(); sys.stderr = io.StringIO()",
            ODD.replace("FLUSH", "pass").replace("FILENO", "return -1"),
            ODD.replace("FLUSH", "pass").replace("FILENO", "return 7777"),
            ODD.replace("FLUSH", "pass").replace("FILENO", "return 'no number'"),
            ODD.replace("FLUSH", "pass").replace("FILENO", "raise OSError"),
            ODD.replace("FLUSH", "pass").replace("FILENO", "raise ZeroDivisionError"),
        ],
        2,
    ),
)
def test_workers_start_with_any_streams_of_the_script(tmp_path: Path, before: str) -> None:
    look = "print('said') or print('said', file=sys.stderr) or os.getcwd()"
    found, code, err = run_with(tmp_path, look, before=before)
    if "close()" in before:
        assert found == ""  # it prints by itself, and so fails: not so its worker
        found, code, err = run_with(tmp_path, "os.getcwd()", before=before)
    assert (found[:4], code) == ("True", 0), err


@pytest.mark.parametrize(
    "shell",
    quick_first(["<&- >&- 2>&-", "> /dev/full", "<&-", ">&-", "2>&-", "<&- >&-", ">&- 2>&-"], 2),
)
def test_workers_start_with_any_streams_of_the_process(tmp_path: Path, shell: str) -> None:
    # A large event needs shared files, which must not be taken for one of the streams.
    look = "(b'x' * 200_000, os.getpid() * 0)"
    before = "sys.stdout and sys.stdout.write('waits in the buffer')"
    found, _, err = run_with(tmp_path, look, before=before, shell=shell)
    assert found[:4] == "True", err


def test_handler_prints_to_a_pipe_without_a_reader(run: Run) -> None:
    ended = run(
        """
        import os, sys
        reads, writes = os.pipe()
        os.close(reads)
        os.dup2(writes, 1)
        from procbus import EventBus
        def handler(n):
            print("line", n)
            return n
        with EventBus([], cpu_workers=1) as bus:
            bus.subscribe("n", handler, kind="cpu")
            values = [r.result(55) for r in [bus.publish("n", n) for n in range(50)]]
        os._exit(0 if values == list(range(50)) else 1)
        """
    )
    assert ended.code == 0, ended.err
    assert ended.err.count("prints of handlers are lost") == 1


@pytest.mark.parametrize("method", quick_first(["fork", "spawn", "forkserver", None], 2))
@pytest.mark.parametrize("what", quick_first(["pool", "process", "executor"]))
def test_cpu_handler_may_start_processes(run: Run, what: str, method: str | None) -> None:
    ended = run(
        f"""
        import concurrent.futures, multiprocessing
        from procbus import EventBus

        def pool(context):
            with context.Pool(2) as pool:
                return pool.map(abs, [0, -1, 4])

        def process(context):
            process = context.Process(target=abs, args=(1,), daemon=True)
            process.start()
            process.join()
            return process.exitcode

        def executor(context):
            with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
                return list(pool.map(abs, [0, -1, 4]))

        def handler(n):
            return {what}(multiprocessing.get_context({method!r}))

        if __name__ == "__main__":
            with EventBus([], cpu_workers=1) as bus:
                bus.subscribe("n", handler, kind="cpu")
                print(bus.publish("n", 1).result(55), bus.publish("n", 1).result(55))
        """
    )
    assert ended.check() == ("0 0\n" if what == "process" else "[0, 1, 4] [0, 1, 4]\n")


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_process_of_multiprocessing_may_have_a_bus_for_handlers_of_the_script(
    run: Run, method: str
) -> None:
    ended = run(
        f"""
        import multiprocessing
        from dataclasses import dataclass
        from procbus import EventBus

        @dataclass
        class Number:
            value: int

        def helper(n):
            return n * n

        def square(number):
            return Number(helper(number.value))

        def work(results):
            with EventBus([], cpu_workers=1) as bus:
                bus.subscribe(Number, square, kind="cpu")
                results.put([bus.publish(Number(n)).result(55) for n in range(3)])

        if __name__ == "__main__":
            context = multiprocessing.get_context({method!r})
            results = context.Queue()
            process = context.Process(target=work, args=(results,))
            process.start()
            print(results.get(timeout=55) == [Number(0), Number(1), Number(4)])
            process.join()
        """
    )
    assert ended.check() == "True\n"


@pytest.mark.parametrize("nice", [0, 3])
def test_workers_have_the_niceness_that_was_asked_for(nice: int) -> None:
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    with EventBus([], cpu_workers=1, worker_nice=nice) as bus:
        bus.subscribe("n", lambda _: os.getpriority(os.PRIO_PROCESS, 0), kind="cpu")
        assert bus.publish("n", 1).result(PATIENCE_S) == min(19, ours + nice)


def test_handler_of_a_module_on_a_later_sys_path_runs(run: Run) -> None:
    ended = run(
        """
        import os, sys
        from procbus import EventBus
        os.mkdir("later")
        with open("later/found_later.py", "w") as file:
            print("class Event: pass", file=file)
            print("def work(event): return type(event).__name__", file=file)
        with EventBus([], cpu_workers=1) as bus:
            bus.subscribe("n", abs, kind="cpu")
            print(bus.publish("n", -1).result(55))
            sys.path.insert(0, os.path.abspath("later"))
            import found_later
            bus.subscribe("m", found_later.work, kind="cpu")
            print(bus.publish("m", found_later.Event()).result(55))
        """
    )
    assert ended.check() == "1\nEvent\n"


@pytest.mark.skipif(
    sys.version_info[:2] == (3, 13), reason="Python 3.13.0 itself imports no socket there"
)
def test_workers_start_in_a_working_directory_that_is_gone(run: Run) -> None:
    ended = run(
        """
        import os, tempfile
        from procbus import EventBus
        folder = tempfile.mkdtemp()
        os.chdir(folder)
        os.rmdir(folder)
        with EventBus([], cpu_workers=1) as bus:
            bus.subscribe("n", abs, kind="cpu")
            print(bus.publish("n", -1).result(55))
        """
    )
    assert ended.check() == "1\n"


def test_error_in_a_daemonic_process_names_the_ways_to_have_cpu_handlers(run: Run) -> None:
    ended = run(
        """
        import multiprocessing
        from procbus import EventBus, ProcbusError

        def work():
            with EventBus([]) as bus:
                bus.subscribe("n", abs, kind="cpu")
                bus.subscribe("m", abs)
                print(bus.publish("m", -1).result(55))
                try:
                    bus.publish("n", -1).result(55)
                except ProcbusError as error:
                    print("daemon=False" in str(error))

        if __name__ == "__main__":
            process = multiprocessing.Process(target=work, daemon=True)
            process.start()
            process.join()
        """
    )
    assert (ended.code, ended.out) == (0, "1\nTrue\n"), ended.err


def test_error_in_a_script_patched_by_gevent_names_the_remedy(run: Run) -> None:
    pytest.importorskip("gevent")
    ended = run(
        """
        from gevent import monkey
        monkey.patch_all()
        from procbus import EventBus, ProcbusError
        with EventBus([]) as bus:
            bus.subscribe("n", abs, kind="cpu")
            bus.subscribe("m", abs)
            print(bus.publish("m", -1).result(55))
            try:
                bus.publish("n", -1).result(55)
            except ProcbusError as error:
                print("patch_all(thread=False)" in str(error))
        """
    )
    assert (ended.code, ended.out) == (0, "1\nTrue\n"), ended.err
