"""The benchmark measures what it says: the same function in every variant, and no ratio where results differ."""

import gc
import mmap
import time

from benchmarks import hopfield, memory_usage, report


def test_variants_compute_the_same_function_and_gradients():
    case = hopfield.Case(hopfield.Setting(2, 40, 32, "cpu"))
    truth, gradients = case.result("ours")
    for variant in case.variants:
        y, grads = case.result(variant)
        output, gradient = hopfield.TOLERANCES["cpu"]
        assert hopfield.relative(y, truth) < output
        for name in gradients:
            assert hopfield.relative(grads[name], gradients[name]) < gradient


def test_no_ratio_is_shown_where_results_differ(capsys):
    row = report.Row("module", "published", 2, 40, 32, "float32", 1.0, 1.0, 3.0, None, 1e-2, 1e-1)
    report.show(row)
    assert "disagrees" in capsys.readouterr().out


def test_the_peak_is_that_of_the_card():
    assert hopfield.peak_share("NVIDIA H100 80GB HBM3", 98_900, 10) == 0.1
    assert hopfield.peak_share("NVIDIA H200", 0, 2400) == 0.5
    assert hopfield.peak_share("NVIDIA GeForce RTX 4090", 98_900, 10) is None


def test_bank_size_rows_report_time_and_memory():
    rows = hopfield.bank_size_rows([300, 700], 32, 1)
    assert [(row.rows, row.dtype) for row in rows] == [(n, t) for n in (300, 700) for t in ("bfloat16", "int8")]
    assert all(row.seconds > 0 and row.extra_megabytes >= 0 for row in rows)


def test_peak_memory_of_a_block_is_seen():
    """Of mapped memory: `malloc` may return as much to the system when it is asked for more."""
    gc.collect()
    with memory_usage.PeakSampler() as sampler:
        before = memory_usage.proc_status_bytes("RssAnon")
        held = mmap.mmap(-1, 2**26, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for place in range(0, 2**26, mmap.PAGESIZE):
            held[place] = 1
        deadline = time.monotonic() + 60  # on a busy machine the first sample may come late
        while sampler.peak - before <= 0.9 * 2**26:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        held.close()
