"""Fill docs/performance.md from the result files: its tables and its chart are made by this command, never typed.

python benchmarks/performance_page.py [--results benchmarks/results] [--page docs/performance.md]

Between `<!-- NAME -->` and `<!-- end -->` the page gets the part of that name (PARTS); what is not measured is said to
be, with the command that measures it. The chart is an SVG beside the page.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.targets import REQUIRED
from turbodiffusion.evaluation.result_file import Row

ROOT = Path(__file__).parents[1]
CHART = "images/performance.svg"
MARKED = re.compile(r"(<!-- ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
MISSING = "*Not measured yet: `{}`.*\n"
OTHER_GPUS = ("h100.json",)
STAGES = ("text_encode", "denoise", "vae_decode", "mp4_encode")
COLOURS = {"text_encode": "#7a5195", "denoise": "#2f6f9f", "vae_decode": "#d98c3f", "mp4_encode": "#9a9a9a"}


@dataclass(frozen=True)
class Results:
    """All rows by name, and of each file where and when it was measured."""

    rows: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, Mapping[str, Any]]

    def value(self, name: str) -> float | None:
        return self.rows[name]["value"] if name in self.rows else None


def read(folder: Path) -> Results:
    """Every result file of a folder; a row of h200.json counts before one of its name elsewhere."""
    files = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    rows: dict[str, Mapping[str, Any]] = {}
    for name in sorted(files, key=lambda name: name == "h200.json"):
        if name not in OTHER_GPUS:  # times of two GPUs make no ratio
            rows |= {row["name"]: row for row in files[name]["rows"]}
    return Results(rows, files)


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rules = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, rules, *lines))


def number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def provenance(results: Results) -> str:
    """Device, versions, commit, date and command of each file."""
    lines = []
    for name, report in results.files.items():
        versions = ", ".join(f"{package} {version}" for package, version in report.get("versions", {}).items())
        lines.append(
            f"- `{name}`: {report['device']}, {versions}, commit {report['commit']}, {report['date']}, "
            f"`{report['command']}`\n"
        )
    return "".join(lines) or MISSING.format("turbodiffusion bench ops --out benchmarks/results/h200.json")


def targets(results: Results) -> str:
    """The rows that h200.json should have, and every other one that misses its target; other GPUs' beside it."""
    if "h200.json" not in results.files:
        return MISSING.format("turbodiffusion bench forward --out benchmarks/results/h200.json")
    files = ["h200.json", *(name for name in results.files if name in OTHER_GPUS)]
    measured = {file: {row["name"]: Row(**row) for row in results.files[file]["rows"]} for file in files}
    required = REQUIRED["h200.json"]
    lines = []
    for name in required | measured["h200.json"]:
        found = [measured[file].get(name) for file in files]
        known = [row for row in (*found, required.get(name)) if row is not None]
        goal = next((row.goal for row in known if row.target is not None), "")
        if name in required or any(row is not None and row.misses for row in found):
            lines.append([f"`{name}`", *map(_measured, found), goal])
    return table(["row", *(file.removesuffix(".json").upper() for file in files), "target"], lines)


def _measured(row: Row | None) -> str:
    if row is None:
        return "not measured"
    value = "failed" if row.value is None else f"{number(row.value)} {row.unit}"
    return f"**{value}: missed**" if row.misses else value


def decomposition(results: Results) -> str:
    """The diffusion of one 1.3B 480p video, from the original to two steps of the fast path."""
    roads = [
        ("original: eager bfloat16, 50 steps, guided", "original.1_3b.480p.forward_ms", 100),
        ("tuned: every fusion, dense, the same steps", "tuned.1_3b.480p.forward_ms", 100),
        ("rCM: 4 steps, no guidance, still dense", "tuned.1_3b.480p.forward_ms", 4),
        ("SageSLA and 8-bit linears, 4 steps", "forward.1_3b.480p.ms", 4),
        ("the same in 2 steps", "forward.1_3b.480p.ms", 2),
    ]
    lines, first = [], None
    for title, row, forwards in roads:
        value = results.value(row)
        if value is None:
            continue
        seconds = value * forwards / 1e3
        first = first or seconds
        lines.append(
            [title, f"{number(value)} ms", str(forwards), f"{number(seconds)} s", f"{number(first / seconds)}x"]
        )
    if len(lines) < 2:
        return MISSING.format("turbodiffusion bench forward --out benchmarks/results/h200.json")
    return table(["1.3B, 81 frames at 480p", "a forward", "forwards", "diffusion", "speed-up"], lines)


def stages_of(results: Results, steps: int) -> dict[str, float]:
    found = {stage: results.value(f"e2e.1_3b.480p.{steps}steps.{stage}_s") for stage in STAGES}
    return {stage: value for stage, value in found.items() if value is not None}


def stages(results: Results) -> str:
    """Where the time of a warm video goes, and the chart of it."""
    lines = []
    for steps in (4, 2):
        whole = results.value(f"e2e.1_3b.480p.{steps}steps.warm_s")
        seconds = stages_of(results, steps)
        if whole is not None:
            cells = [f"{seconds[stage]:.3f}" if stage in seconds else "" for stage in STAGES]
            lines.append([f"{steps} steps", *cells, f"{whole:.3f}"])
    if not lines:
        command = "turbodiffusion bench end-to-end --weights weights/1.3b --out benchmarks/results/h200.json"
        return MISSING.format(command)
    chart = f"![Where the time of one video goes]({CHART})\n\n"
    return chart + table(["seconds", *STAGES, "prompt to mp4"], lines)


def kernels(results: Results) -> str:
    """The rate of each kernel and its share of the chip's limit, which its method tells; of the first file with any."""
    for file in ("h200.json", *OTHER_GPUS):
        rows = {row["name"]: row for row in results.files.get(file, {"rows": []})["rows"]}
        lines = []
        for name, row in sorted(rows.items()):
            share = re.search(r"([\d.]+%) of [\d.]+(;|$)", row["method"])
            if share and row["value"] is not None and row["better"] == "higher":
                kernel = name.removesuffix(f".{row['unit']}")
                error = rows.get(f"{kernel}.error", {}).get("value")
                rate = f"{number(row['value'])} {row['unit']}"
                lines.append([f"`{kernel}`", rate, share[1], "" if error is None else f"{error:.1e}"])
        if lines:
            return f"From {file}.\n\n{table(['kernel', 'rate', 'of the limit', 'error'], lines)}"
    return MISSING.format("turbodiffusion bench ops --out benchmarks/results/h200.json")


def svg(results: Results) -> str:
    """A bar for each number of steps, its stages side by side, seconds to scale."""
    bars = [(f"{steps} steps", found) for steps in (4, 2) if (found := stages_of(results, steps))]
    longest = max(sum(found.values()) for _, found in bars)
    width, left, height = 640, 70, 34
    parts = []
    for line, (title, found) in enumerate(bars):
        x, y = float(left), 12 + line * (height + 14)
        parts.append(f'<text x="8" y="{y + 22}">{title}</text>')
        for stage, seconds in found.items():
            span = seconds / longest * (width - left - 12)
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{span:.1f}" height="{height}" fill="{COLOURS[stage]}"/>')
            if span > 44:
                parts.append(f'<text x="{x + 5:.1f}" y="{y + 22}" fill="#fff">{seconds:.2f} s</text>')
            x += span
    bottom = 12 + len(bars) * (height + 14) + 6
    for place, stage in enumerate(STAGES):
        x = left + place * 110
        parts.append(f'<rect x="{x}" y="{bottom}" width="12" height="12" fill="{COLOURS[stage]}"/>')
        parts.append(f'<text x="{x + 18}" y="{bottom + 11}">{stage}</text>')
    style = 'font-family="sans-serif" font-size="13" fill="#222"'
    body = "\n".join(parts)
    size = f'width="{width}" height="{bottom + 24}"'
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n{background}\n{body}\n</svg>\n'


PARTS: dict[str, Callable[[Results], str]] = {
    "provenance": provenance,
    "targets": targets,
    "decomposition": decomposition,
    "stages": stages,
    "kernels": kernels,
}


def fill(page: str, results: Results) -> str:
    """The page with each marked part made anew. Raises KeyError for a mark that PARTS does not have."""
    return MARKED.sub(lambda found: f"{found[1]}{PARTS[found[2]](results)}{found[3]}", page)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "performance.md")
    chosen = parser.parse_args(arguments)
    results = read(chosen.results)
    chosen.page.write_text(fill(chosen.page.read_text(encoding="utf-8"), results), encoding="utf-8")
    if stages_of(results, 4) or stages_of(results, 2):
        chart = chosen.page.parent / CHART
        chart.parent.mkdir(exist_ok=True)
        chart.write_text(svg(results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
