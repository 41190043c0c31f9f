"""When a handler of kind "auto" moves."""

from hypothesis import given
from hypothesis import strategies as st

from procbus.advice.judge import AGREEING, SILENT, WORTH_A_MOVE, Judgement, SwitchPolicy

TO_CPU, TO_IO = Judgement("cpu", 2.0), Judgement("io", 3.0)


def test_handler_moves_once_judgements_agree():
    policy = SwitchPolicy()
    assert [policy.moves("io", TO_CPU, 1.0) for _ in range(AGREEING)] == [False, True]


def test_disagreeing_judgement_begins_the_count_anew():
    policy = SwitchPolicy()
    for judgement in (SILENT, Judgement("io"), Judgement("cpu", WORTH_A_MOVE - 0.01)):
        assert not policy.moves("io", TO_CPU, 1.0)
        assert not policy.moves("io", judgement, 1.0)
    assert not policy.moves("io", TO_CPU, 1.0)


def test_stay_grows_with_each_move():
    policy, now, kind, stays = SwitchPolicy(), 0.0, "io", []
    for _ in range(12):
        began = now
        while not policy.moves(kind, TO_CPU if kind == "io" else TO_IO, now):
            now += 0.25
        kind = "cpu" if kind == "io" else "io"
        stays.append(now - began)
    assert stays[0] == 0.25
    assert stays[1] == 2.0
    assert stays == sorted(stays)
    assert stays[-1] == 300.0


@given(
    st.lists(
        st.builds(Judgement, st.sampled_from(("io", "cpu", None)), st.floats(1, 10), st.booleans()),
        max_size=60,
    )
)
def test_handler_never_moves_to_its_own_lane_nor_twice_in_a_row(judgements: list[Judgement]):
    policy, kind, moved_at = SwitchPolicy(), "io", -10.0
    for now, judgement in enumerate(judgements):
        if policy.moves(kind, judgement, float(now)):
            assert judgement.kind not in (None, kind)
            assert judgement.gain >= WORTH_A_MOVE
            assert now - moved_at >= 2
            moved_at = now
            kind = "cpu" if kind == "io" else "io"
