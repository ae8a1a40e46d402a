from amrg.training.watch import failures


def test_loops_and_stock_reports_are_told_apart():
    looping = "the lungs are clear " * 3
    assert failures([looping, "No effusion.", "no effusion"]) == {"watched_loops": 1 / 3, "watched_generic": 2 / 3}
    assert failures(["Small effusion.", "No effusion."]) == {"watched_loops": 0.0, "watched_generic": 0.5}
