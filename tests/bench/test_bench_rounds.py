from __future__ import annotations

import pytest

from bench.records import Sample
from bench.rounds import Turn, calibrate, interleave, play


def test_everybody_takes_turns() -> None:
    assert list(interleave("ABC", 3)) == list("ABCABCABC")


class Runs:
    """Turns that write down who ran, at a given cost of one operation."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int]] = []

    def turn(self, name: str, cost_s: float, *, fails_at: int = -1, **more) -> Turn[str]:
        def run(count: int) -> Sample:
            self.log.append((name, count))
            if fails_at == len([1 for who, _ in self.log if who == name]):
                raise RuntimeError("broke")
            return Sample(cost_s, cost_s * count)

        return Turn(name, run, **{"most": 10**9, **more})


def why(error: BaseException) -> str:
    return str(error)


def test_rounds_are_interleaved_after_the_warm_up() -> None:
    runs = Runs()
    turns = [runs.turn("A", 1e-6), runs.turn("B", 1e-3), runs.turn("C", 1e-2)]
    play(turns, 4, 0.01, why)
    assert [name for name, _ in runs.log][-12:] == list("ABCABCABCABC")
    assert [len(turn.samples) for turn in turns] == [4, 4, 4]
    moments = [at for round_ in zip(*(turn.at_s for turn in turns), strict=True) for at in round_]
    assert moments == sorted(moments)


def test_samples_take_about_as_long_whatever_a_call_costs() -> None:
    for cost_s in (1e-8, 1e-6, 1e-4, 1e-2):
        count = calibrate(lambda n, cost_s=cost_s: Sample(cost_s, n * cost_s), 0.04, 1, 10**9)
        assert 0.02 <= count * cost_s <= 0.08


def test_a_single_slow_call_is_not_believed() -> None:
    calls = []

    def run(count: int) -> Sample:
        calls.append(count)
        return Sample(1e-6, 1.0 if len(calls) == 1 else count * 1e-6)

    assert calibrate(run, 0.04, 1, 10**9) >= 20_000


def test_never_more_than_the_most() -> None:
    assert calibrate(lambda n: Sample(0, n * 1e-9), 0.04, 1, 500) == 500
    assert calibrate(lambda n: Sample(0, n * 1e-9), 0.04, 100, 100) == 100


def test_what_takes_too_long_is_cut() -> None:
    assert calibrate(lambda n: Sample(0, n * 0.01), 0.04, 100, 1000) == 4


def test_a_fixed_number_has_no_warm_up() -> None:
    runs = Runs()
    turn = runs.turn("A", 1e-6, fixed=77)
    play([turn], 1, 0.04, why)
    assert runs.log == [("A", 77)]


@pytest.mark.parametrize("fails_at", [1, 9])
def test_one_that_fails_says_why_and_the_others_go_on(fails_at: int) -> None:
    runs = Runs()
    good, bad = runs.turn("A", 1e-2), runs.turn("B", 1e-2, fails_at=fails_at)
    play([good, bad], 10, 0.01, why)
    assert (bad.why, bad.samples) == ("broke", [])
    assert (good.why, len(good.samples)) == ("", 10)
