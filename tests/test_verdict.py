import pytest

from fedexp.verdict import failed_in_a_row, of_run, problem, problems

GOOD = {"failed": False, "num-failures": 0, "test-accuracy": 0.5, "mean-test-loss": 1.0}


def bad(failures=None, failed=True):
    failures = {"it is NaN.": [4, 5]} if failures is None else failures
    return {
        **{"failed": failed, "num-failures": sum(map(len, failures.values()))},
        **{"failures": failures, "test-accuracy": 0.1, "mean-test-loss": 2.0},
    }


def test_a_run_in_which_every_client_contributed_has_no_problem():
    assert problem([GOOD, bad(failed=False), bad(), GOOD], [], 4) is None


@pytest.mark.parametrize(
    ("rows", "missing", "num_rounds", "said"),
    [
        ([bad(), bad()], [4, 5], 2, "no round of 2 succeeded: 2 clients: it is NaN."),
        ([bad({"x.": [4]})] * 3, [4], 9, "no round of 3 succeeded: client at node 4: x."),
        ([bad({})], [4], 1, "no round of 1 succeeded: no reply in time."),
        (
            [GOOD, bad({"old.": [9]}), GOOD, bad(), bad()],
            [],
            9,
            "ended in round 5, after 2 failed in a row: 2 clients: it is NaN.",
        ),
        (
            [GOOD, bad({"a.": [4], "b.": [7]}, failed=False)],
            [4],
            2,
            "client at node 4 never contributed: client at node 4: a.",
        ),
        (
            [bad({"few.": [1], "loss 1e5.": [2, 3]}), bad({"loss 7.": [4]})],
            [],
            2,
            "no round of 2 succeeded: 3 clients: loss 1e5; client at node 1: few.",
        ),
    ],
)
def test_the_problem_is_named_with_its_own_reason(rows, missing, num_rounds, said):
    assert problem(rows, missing, num_rounds) == said


def test_only_the_last_rounds_count_as_a_row():
    assert failed_in_a_row([]) == 0
    assert failed_in_a_row([bad(), bad(), GOOD]) == 0
    assert failed_in_a_row([bad(), GOOD, bad(), bad()]) == 2


def test_a_summary_counts_failures_and_names_the_missing():
    told = of_run([GOOD, bad(), bad(failed=False)], {9, 5}, 3)
    assert (told["failed-rounds"], told["num-failures"]) == (1, 4)
    assert told["missing-nodes"] == [5, 9]


def test_equal_problems_of_several_strategies_are_one_line():
    summaries = {key: {"problem": p} for key, p in zip("abcd", ["x", None, "y", "x"], strict=True)}
    assert problems(summaries) == ["a, d: x", "c: y"]


def test_a_model_that_cannot_be_scored_is_no_success():
    """Its clients may have trained without a failure: all that is wrong shows at the server."""
    row = {"failed": False, "num-failures": 0, "test-loss": 1.0}
    assert problem([row, row], [], 2) is None
    found = problem([row, {**row, "test-loss": None}], [], 2)
    assert "test loss of the last model is not finite" in found
