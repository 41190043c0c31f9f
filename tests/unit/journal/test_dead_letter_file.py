# SPDX-License-Identifier: MIT
"""Dead letters in a file: loaded ones, and files refused before anything is unpickled."""

import json
import os
import pickle
import socket
import sqlite3
import stat
import threading
import traceback
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus import EventBus
from procbus.cli.main import main
from procbus.core.dead_letter import DeadLetter
from procbus.core.errors import HandlerTimeout, ProcbusError, SerializationError, WorkerTraceback
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.journal.dead_letter_file import load_letters, save_letters
from procbus.journal.storage.schema import VERSION
from tests.parts import BOUND_S
from tests.unit.core.test_dead_letter import caught, letter


@dataclass(frozen=True)
class Page:
    url: str


class Locked(Exception):
    """Does not pickle."""

    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


class Picky(Exception):
    """Pickles, and does not unpickle."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")


class Impostor(Exception):
    """Unpickles as something that is no error."""

    def __reduce__(self):
        return str, ("no error",)


sprung: list[str] = []


class Trap:
    """Leaves a trace when it is unpickled."""

    def __reduce__(self):
        return spring, ()


def spring() -> None:
    sprung.append("sprung")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "letters"


def there_and_back(path: Path, *letters: DeadLetter) -> list[DeadLetter]:
    save_letters(path, letters)
    return load_letters(path)


def fields(one: DeadLetter) -> list[Any]:
    names = ("event_id", "event", "topic", "handler", "kind", "failed_at", "quarantined")
    return [getattr(one, name) for name in names]


def test_saved_letters_come_back_complete(path):
    timeout = HandlerTimeout("late", handler="h", event_id=7, limit_s=1.5, stack="in parse\n")
    saved = letter(
        event=Page("http://x"),
        topic="page.fetched",
        kind="cpu",
        quarantined=True,
        outcomes=(
            Outcome(OutcomeKind.RAISED, None, caught(KeyError("id")), 101.0, 103.0, 4711, 2),
            Outcome(OutcomeKind.TIMED_OUT, None, timeout),
        ),
    )
    (loaded,) = there_and_back(path, saved)
    assert fields(loaded) == fields(saved)
    assert loaded.stacks == saved.stacks
    assert loaded.describe() == saved.describe()
    first, last = loaded.outcomes
    assert isinstance(first.error, KeyError)
    assert first._replace(error=None) == saved.outcomes[0]._replace(error=None)
    assert isinstance(last.error, HandlerTimeout)
    assert vars(last.error) == vars(timeout)


def test_no_letters_are_a_file_too(path):
    assert there_and_back(path) == []


events = st.recursive(st.none() | st.integers() | st.text() | st.binary(), st.lists, max_leaves=5)


@given(st.lists(events, max_size=5))
def test_any_number_comes_back_in_order(tmp_path_factory, given_events):
    path = tmp_path_factory.mktemp("any") / "letters"
    loaded = there_and_back(path, *(letter(ValueError(), event=each) for each in given_events))
    assert [each.event for each in loaded] == given_events


def test_an_error_whose_class_wants_more_than_its_args_comes_back_as_it_was(path):
    (loaded,) = there_and_back(path, letter(caught(Picky(7, "why"))))
    assert type(loaded.error) is Picky
    assert fields_of_error(loaded.error) == fields_of_error(Picky(7, "why"))


def fields_of_error(error):
    return str(error), error.args, vars(error)


@pytest.mark.parametrize("error", [Locked(), Impostor("odd")])
def test_an_error_that_cannot_travel_comes_back_as_its_text(path, error):
    (loaded,) = there_and_back(path, letter(caught(error)))
    assert type(loaded.error) is ProcbusError
    assert str(loaded.error) == f"{type(error).__name__}: {error}"
    assert isinstance(loaded.error.__cause__, WorkerTraceback)
    assert loaded.stacks[0] == "".join(traceback.format_exception(error))


def test_an_error_whose_class_is_gone_comes_back_as_its_text(path, monkeypatch):
    save_letters(path, [letter(caught(Gone("bad")))])
    monkeypatch.delattr("tests.unit.journal.test_dead_letter_file.Gone")
    (loaded,) = load_letters(path)
    assert str(loaded.error) == "Gone: bad"
    assert "in caught" in loaded.stacks[0]


class Gone(Exception):
    pass


def test_an_error_without_a_stack_gets_none(path):
    (loaded,) = there_and_back(path, letter(ValueError("bad")))
    assert loaded.error is not None
    assert loaded.error.__cause__ is None
    assert loaded.stacks == ("",)


def test_an_event_that_cannot_be_pickled_is_named_and_nothing_is_written(path):
    path.write_text("what was there")
    bad = letter(ValueError(), event={"rows": [threading.Lock()]}, event_id=12)
    with pytest.raises(SerializationError, match=r"event #12 for shop\.store cannot be") as error:
        save_letters(path, [letter(ValueError()), bad])
    assert error.value.path == "event['rows'][0]"
    assert path.read_text() == "what was there"
    assert os.listdir(path.parent) == ["letters"]


def test_file_is_private_to_its_owner_for_any_umask_and_any_old_file(path):
    path.touch()
    path.chmod(0o666)
    before = os.umask(0)
    try:
        save_letters(path, [letter(ValueError())])
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["letters"]


def test_a_symbolic_link_stays_one(path):
    target = path.with_name("target")
    path.symlink_to(target)
    save_letters(path, [letter(ValueError())])
    assert path.is_symlink()
    assert len(load_letters(target)) == 1


def test_writing_that_fails_leaves_the_old_file_and_no_other(path, monkeypatch):
    save_letters(path, [letter(ValueError(), event_id=1)])

    def fsync(fd: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("procbus.journal.dead_letter_file.os.fsync", fsync)
    with pytest.raises(OSError, match="disk full"):
        save_letters(path, [])
    assert len(load_letters(path)) == 1
    assert os.listdir(path.parent) == ["letters"]


def test_a_directory_that_is_not_there_is_an_os_error(path):
    with pytest.raises(FileNotFoundError):
        save_letters(path / "below", [])
    with pytest.raises(FileNotFoundError):
        load_letters(path)


# Refused files.


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused(path, mode):
    sprung.clear()
    save_letters(path, [letter(ValueError(), event=Trap())])
    path.chmod(mode)
    with pytest.raises(ProcbusError, match=rf"mode {mode:04o}.*chmod 600 .*letters"):
        load_letters(path)
    assert sprung == []
    path.chmod(0o644)
    load_letters(path)
    assert sprung == ["sprung"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such owners")
@pytest.mark.parametrize(("owner", "refused"), [(12345, True), (0, False)])
def test_a_file_of_another_user_is_refused_unless_it_is_root(path, monkeypatch, owner, refused):
    save_letters(path, [letter(ValueError())])
    real = os.fstat

    def fstat(fd: int) -> os.stat_result:
        status = list(real(fd))
        status[stat.ST_UID] = owner
        return os.stat_result(status)

    monkeypatch.setattr("procbus.journal.dead_letter_file.os.fstat", fstat)
    if refused:
        with pytest.raises(ProcbusError, match=r"belongs to another user \(uid 12345\).*copy it"):
            load_letters(path)
    else:
        assert len(load_letters(path)) == 1


def test_special_file_is_refused_without_waiting_for_it(path, tmp_path):
    os.mkfifo(path)
    with pytest.raises(ProcbusError, match="not a regular file"):
        load_letters(path)
    with pytest.raises(ProcbusError, match="not a regular file"):
        load_letters(tmp_path)


@pytest.mark.parametrize("data", [b"", b"\n", b"a,b\n1,2\n", b"SQLite format 3\0", b"procbus"])
def test_another_kind_of_file_is_refused(path, data):
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(ProcbusError, match="letters is not a file of dead letters"):
        load_letters(path)


def test_database_of_another_program_is_refused(path):
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE letters (position INTEGER)")
    path.chmod(0o600)
    with pytest.raises(ProcbusError, match="letters is not a file of dead letters"):
        load_letters(path)


def test_journal_of_a_bus_is_refused_and_distinguished_from_a_file_of_letters(path):
    with EventBus([], journal=path) as bus:
        bus.subscribe("a", print)
    with pytest.raises(ProcbusError, match=r"is the journal of a bus: EventBus\(journal="):
        load_letters(path)


def test_file_in_the_earlier_format_is_recognised_and_refused(path):
    path.write_bytes(b"procbus dead letters, version 1\nwhatever")
    path.chmod(0o600)
    with pytest.raises(
        ProcbusError, match=r"saved by an earlier procbus.*replay the letters there"
    ):
        load_letters(path)


def test_newer_version_is_refused_and_named(path):
    save_letters(path, [letter(ValueError())])
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(ProcbusError, match=rf"newer procbus \(schema {VERSION + 1}\): update"):
        load_letters(path)


def test_truncated_file_is_refused_before_anything_is_unpickled(path):
    sprung.clear()
    save_letters(path, [letter(ValueError(), event=Trap()), letter(ValueError(), event=Trap())])
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ProcbusError, match=r"is truncated: it has|is not a file of dead"):
            load_letters(path)
    assert sprung == []


def test_bit_that_flipped_is_noticed_or_changes_nothing(path):
    saved = [letter(ValueError(), event="one" * 40), letter(KeyError("k"), event="two" * 40)]
    save_letters(path, saved)
    whole = path.read_bytes()
    refused = 0
    for at in range(0, len(whole), 199):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            loaded = load_letters(path)
        except ProcbusError:
            refused += 1
        else:  # in a part of the file that holds nothing
            assert [fields(each) for each in loaded] == [fields(each) for each in saved]
    assert refused


def test_flipped_bit_within_a_letter_is_refused_before_anything_is_unpickled(path):
    sprung.clear()
    save_letters(path, [letter(ValueError(), event=Trap()), letter(ValueError(), event="page")])
    whole = path.read_bytes()
    at = whole.index(b"page")
    path.write_bytes(whole[:at] + b"gage" + whole[at + 4 :])
    with pytest.raises(ProcbusError, match=r"is corrupt: letter 2 of 2 differs from the saved one"):
        load_letters(path)
    assert sprung == []


def test_file_with_extra_bytes_is_refused(path):
    save_letters(path, [letter(ValueError())])
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(ProcbusError, match="is corrupt: it has"):
        load_letters(path)


def test_letters_of_several_runs_keep_their_order_and_the_numbers_of_their_events(path):
    saved = [
        letter(ValueError(), event=event, event_id=id, handler=handler, kind=kind)
        for event, id, handler, kind in (
            ("a", 5, "store", "io"),
            ("b", 1, "store", "cpu"),  # kind="auto" may move a handler
            ("c", 5, "store", "io"),  # of another run
            ("d", 6, "parse", "cpu"),
        )
    ]
    assert [fields(each) for each in there_and_back(path, *saved)] == [fields(e) for e in saved]


def test_command_line_lists_and_shows_letters_and_they_can_still_be_loaded(path, capsys):
    save_letters(path, [letter(caught(KeyError("id")), event=Page("http://x"), event_id=12)])
    assert main(["journal", "list", str(path), "--json"]) == 0
    [line] = json.loads(capsys.readouterr().out)
    assert (line["id"], line["state"], line["attempts"]) == ("12:shop.store", "dead", 1)
    assert main(["journal", "show", str(path), "12", "--unpickle"]) == 0
    shown = capsys.readouterr().out
    assert "http://x" in shown
    assert "KeyError" in shown
    assert [each.event for each in load_letters(path)] == [Page("http://x")]
    assert os.listdir(path.parent) == ["letters"]


def test_bus_can_take_a_file_of_letters_for_its_journal(path):
    save_letters(path, [letter(ValueError(), event=7, topic="row", event_id=12)])
    done: list[int] = []
    with EventBus([], journal=path) as bus:
        bus.subscribe("row", done.append, name="shop.store")
        bus.start()
        [receipt] = bus.dead_letters.replay()
        receipt.result(BOUND_S)
    assert done == [7]


def test_an_event_that_cannot_be_loaded_is_named(path, monkeypatch):
    save_letters(path, [letter(ValueError(), event=Page("http://x"), event_id=12)])
    monkeypatch.delattr("tests.unit.journal.test_dead_letter_file.Page")
    with pytest.raises(ProcbusError, match=r"event #12 for shop\.store in .*letters could not be"):
        load_letters(path)


def test_loaded_letters_are_pickled_again(path):
    (loaded,) = there_and_back(path, letter(ValueError("bad"), event=Page("http://x")))
    (again,) = there_and_back(path, loaded)
    assert fields(again) == fields(loaded)
    assert pickle.loads(pickle.dumps(again.event)) == Page("http://x")


def test_a_socket_in_an_event_is_blamed(path):
    with socket.socket() as opened:
        event = {"connection": opened}
        with pytest.raises(SerializationError, match=r"because of event\['connection'\]"):
            save_letters(path, [letter(ValueError(), event=event)])
