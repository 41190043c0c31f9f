"""When a handler of kind "auto" moves."""

from hypothesis import given
from hypothesis import strategies as st

from procbus.advice.judge import AGREEING, SILENT, WORTH_A_MOVE, Mover, Verdict

TO_CPU, TO_IO = Verdict("cpu", 2.0), Verdict("io", 3.0)


def test_it_moves_once_judgements_agree():
    mover = Mover()
    assert [mover.moves("io", TO_CPU, 1.0) for _ in range(AGREEING)] == [False, True]


def test_one_that_does_not_agree_begins_anew():
    mover = Mover()
    for verdict in (SILENT, Verdict("io"), Verdict("cpu", WORTH_A_MOVE - 0.01)):
        assert not mover.moves("io", TO_CPU, 1.0)
        assert not mover.moves("io", verdict, 1.0)
    assert not mover.moves("io", TO_CPU, 1.0)


def test_it_stays_longer_with_each_move():
    mover, now, kind, stays = Mover(), 0.0, "io", []
    for _ in range(12):
        began = now
        while not mover.moves(kind, TO_CPU if kind == "io" else TO_IO, now):
            now += 0.25
        kind = "cpu" if kind == "io" else "io"
        stays.append(now - began)
    assert stays[0] == 0.25
    assert stays[1] == 2.0
    assert stays == sorted(stays)
    assert stays[-1] == 300.0


@given(
    st.lists(
        st.builds(Verdict, st.sampled_from(("io", "cpu", None)), st.floats(1, 10), st.booleans()),
        max_size=60,
    )
)
def test_it_never_moves_to_where_it_is_nor_twice_in_a_row(verdicts: list[Verdict]):
    mover, kind, moved_at = Mover(), "io", -10.0
    for now, verdict in enumerate(verdicts):
        if mover.moves(kind, verdict, float(now)):
            assert verdict.kind not in (None, kind)
            assert verdict.gain >= WORTH_A_MOVE
            assert now - moved_at >= 2
            moved_at = now
            kind = "cpu" if kind == "io" else "io"
