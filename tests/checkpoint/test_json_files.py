"""JSON that anybody may have written: whatever is wrong with it is a ValueError."""

import pytest

from turbodiffusion.checkpoint import json_files
from turbodiffusion.checkpoint.json_files import parse_json, read_json


@pytest.mark.parametrize("source", ["{", "[" * 60_000, "9" * 5000, '{"a": NaN}', "[-Infinity]", ""])
def test_what_is_no_json_raises_value_error(source, tmp_path):
    with pytest.raises(ValueError, match=r".") as caught:
        parse_json(source)
    assert len(str(caught.value)) < 300
    (tmp_path / "x.json").write_text(source)
    with pytest.raises(ValueError, match=r"."):
        read_json(tmp_path / "x.json")


def test_a_file_is_read_to_a_limit_and_as_utf_8(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    path.write_text('["猫"]', encoding="utf-8")
    assert read_json(path) == ["猫"]
    path.write_bytes(b'["\xff"]')
    with pytest.raises(ValueError, match="utf-8"):
        read_json(path)
    monkeypatch.setattr(json_files, "MAX_BYTES", 4)
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="over"):
        read_json(path)
