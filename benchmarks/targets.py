"""The rows that a benchmark's result file must have, and what they are to reach on one H200.

`turbodiffusion bench --check FILE` reads them: a row that is missing is a miss. `sla.module` is the SageSLA module.
"""

from turbodiffusion.evaluation.result_file import Row, expected

REQUIRED: dict[str, dict[str, Row]] = {
    file: {row.name: row for row in rows}
    for file, rows in {
        "h200.json": (
            expected("original.1_3b.480p.forward_ms", "ms"),
            expected("tuned.1_3b.480p.forward_ms", "ms"),
            expected("forward.1_3b.480p.ms", "ms", target=150.0),
            expected("forward.1_3b.720p.ms", "ms", target=420.0),
            expected("forward.14b.480p.ms", "ms", target=950.0),
            expected("forward.14b.720p.ms", "ms", target=2700.0),
            expected("sla.module.ms", "ms", target=1.3),
            expected("vae.decode.480p.ms", "ms", target=750.0),
            expected("text.512.ms", "ms", target=25.0),
            expected("e2e.1_3b.480p.4steps.warm_s", "s", target=1.6),
            expected("e2e.1_3b.480p.4steps.cold_s", "s", target=15.0),
            expected("speedup.original.4steps", "x", "higher", 100.0),
            expected("speedup.original.2steps", "x", "higher", 200.0),
            expected("speedup.tuned.4steps", "x", "higher"),
            expected("peak.1_3b.480p.gib", "GiB", target=8.0),
            expected("error.sagesla", "relative L2"),
            expected("error.blockmap.overlap", "share", "higher"),
            expected("error.forward.int8", "relative L2", target=0.025),
            expected("error.forward.fp8", "relative L2", target=0.07),
        ),
    }.items()
}


def target(name: str) -> float | None:
    """Return the target of a row of h200.json, where it has one before a run."""
    row = REQUIRED["h200.json"].get(name)
    return None if row is None else row.target
