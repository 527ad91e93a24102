"""What a device tells of itself: memory, limits, a container's share."""

from turbodiffusion.inference.device import _system_memory, device_info
from turbodiffusion.memory.plan import GIB, device_name


def test_a_limit_makes_the_machine_smaller(monkeypatch):
    monkeypatch.setattr("turbodiffusion.inference.device._system_memory", lambda: (64 * GIB, 60 * GIB))
    here = device_info("cpu", 8)
    assert (
        here.total == here.free == 8 * GIB and here.host_free == 60 * GIB and "--max-memory 8" in str(device_name(here))
    )
    assert device_info("cpu", 100).free == 60 * GIB


def test_this_machine_has_memory():
    here = device_info("cpu")
    assert here.device == "cpu" and here.cores >= 1
    assert 0 < here.free <= here.total
    assert here.total > 2**28


def test_a_containers_limit_counts(tmp_path):
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    proc.mkdir()
    cgroup.mkdir()
    (proc / "meminfo").write_text("MemTotal:  64000000 kB\nMemAvailable:  60000000 kB\nHugePages_Total:  0\n")
    assert _system_memory(proc, cgroup) == (64000000 * 1024, 60000000 * 1024)
    (cgroup / "memory.max").write_text("max\n")
    assert _system_memory(proc, cgroup) == (64000000 * 1024, 60000000 * 1024)
    (cgroup / "memory.max").write_text(f"{8 * GIB}\n")
    (cgroup / "memory.current").write_text(f"{4 * GIB}\n")
    (cgroup / "memory.stat").write_text(f"anon {3 * GIB}\ninactive_file {GIB}\n")  # cached files are given back
    assert _system_memory(proc, cgroup) == (8 * GIB, 5 * GIB)
