"""The page of measured times is what its command makes of the result files."""

import json
import shutil
import xml.etree.ElementTree as ElementTree

import pytest

from turbodiffusion.cli import bench
from turbodiffusion.evaluation.result_file import Row, write_results

ROOT = bench.BENCHMARKS.parent


@pytest.fixture(scope="module")
def command():
    if not bench.BENCHMARKS.is_dir():
        pytest.skip("no checkout")
    return bench._script(bench.BENCHMARKS / "performance_page.py")


@pytest.fixture
def page(tmp_path):
    return shutil.copy(ROOT / "docs" / "performance.md", tmp_path / "performance.md")


def test_the_page_is_up_to_date(command):
    page = (ROOT / "docs" / "performance.md").read_text()
    assert command.fill(page, command.read(ROOT / "benchmarks" / "results")) == page


def test_what_is_not_measured_is_said_to_be(command, page, tmp_path):
    assert command.main(["--results", str(tmp_path / "none"), "--page", str(page)]) == 0
    assert page.read_text().count("Not measured yet") == len(command.PARTS)


def test_tables_and_chart_come_from_the_files(command, page, tmp_path):
    def row(name, value, unit="s", target=None, better="lower", method="a clock"):
        return Row(name, value, unit, better, target, method)

    stages = {"text_encode": 0.02, "denoise": 0.5, "vae_decode": 0.7, "mp4_encode": 0.05}
    rows = [
        row("original.1_3b.480p.forward_ms", 600.0, "ms"),
        row("tuned.1_3b.480p.forward_ms", 500.0, "ms"),
        row("forward.1_3b.480p.ms", 125.0, "ms", 150.0),
        row("forward.14b.480p.ms", None, "ms", 950.0),
        row("e2e.1_3b.480p.4steps.warm_s", 1.75, "s", 1.6),
        *(row(f"e2e.1_3b.480p.4steps.{stage}_s", value) for stage, value in stages.items()),
        row("rms_norm.1536.TB/s", 3.6, "TB/s", None, "higher", "median of 20; 75.0% of 4.8; measured on an H200"),
        row("rms_norm.1536.error", 1.7e-3, ""),
    ]
    write_results(tmp_path / "h200.json", rows, "a test")
    assert command.main(["--results", str(tmp_path), "--page", str(page)]) == 0
    text = page.read_text()
    assert "| `forward.1_3b.480p.ms` | 125 ms | at most 150 |" in text
    assert "| `e2e.1_3b.480p.4steps.warm_s` | **1.75 s: missed** | at most 1.6 |" in text
    assert "| `forward.14b.480p.ms` | **failed: missed** | at most 950 |" in text
    assert "| `e2e.1_3b.480p.4steps.cold_s` | not measured | at most 15 |" in text
    assert "| `speedup.tuned.4steps` | not measured |  |" in text
    assert "| original: eager bfloat16, 50 steps, guided | 600 ms | 100 | 60 s | 1x |" in text
    assert "| SageSLA and 8-bit linears, 4 steps | 125 ms | 4 | 0.5 s | 120x |" in text
    assert "| 4 steps | 0.020 | 0.500 | 0.700 | 0.050 | 1.750 |" in text
    assert "| `rms_norm.1536` | 3.6 TB/s | 75.0% | 1.7e-03 |" in text
    assert "`a test`" in text and "Not measured" not in text
    chart = ElementTree.parse(tmp_path / command.CHART)
    assert "0.70 s" in {element.text for element in chart.iter()}
    assert command.fill(text, command.read(tmp_path)) == text


def test_another_gpu_stands_beside(command, tmp_path):
    for name, value in (("h200", 1.7), ("h100", 1.5)):
        row = Row("e2e.1_3b.480p.4steps.warm_s", value, "s", "lower", 1.6, "a clock")
        write_results(tmp_path / f"{name}.json", [row], "a test")
    text = command.targets(command.read(tmp_path))
    assert "| row | H200 | H100 | target |" in text
    assert "| `e2e.1_3b.480p.4steps.warm_s` | **1.7 s: missed** | 1.5 s | at most 1.6 |" in text


def test_a_row_of_h200_counts_before_others(command, tmp_path):
    for name, value in (("h200", 1.0), ("other", 2.0)):
        write_results(tmp_path / f"{name}.json", [Row("x.ms", value, "ms", "lower", None, "a clock")], "a test")
    assert command.read(tmp_path).value("x.ms") == 1.0
    assert json.loads((tmp_path / "other.json").read_text())["rows"]
