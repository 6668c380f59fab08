"""YAML of users: what is read, and what is refused before it costs time or memory."""

import os
import time
from pathlib import Path

import pytest

from finemem_lib.util.provenance import workbench_root
from finemem_lib.util.yaml_files import MAX_BYTES, MAX_DEPTH, MAX_NODES, parse_yaml, read_yaml

LAUGHS = "a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 30))


@pytest.mark.parametrize("path", sorted((workbench_root() / "notebooks").glob("*/*.yaml")), ids=str)
def test_every_yaml_file_of_the_repository_is_within_the_limits(path: Path) -> None:
    assert isinstance(read_yaml(path), dict)


def test_aliases_and_merge_keys_are_read() -> None:
    text = "a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\n"
    assert parse_yaml(text) == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LAUGHS, "line 4: more than 10,000 values, those of aliases included; shorten it"),
        (CHAIN, "line 20: nested deeper than 20 lists and mappings; flatten it"),
        ("a: " + "[" * 200_000, "line 1: nested deeper than 20"),
        ("a: " + "{b: " * 200_000, "line 1: nested deeper than 20"),
        ("\n".join(" " * n + "-" for n in range(1000)), "nested deeper than 20"),
        ("a: &a [1, *a]", "line 1: an alias lies within the value it stands for; write it out"),
        ("[" + "1, " * 20_000 + "1]", "line 1: more than 10,000 values"),
        ("a: *secret", "line 1: no YAML (found undefined alias '...'); correct it"),
        ("a: !secret b", "line 1: no YAML (could not determine a constructor for the tag '...')"),
        ("a: 1\nb: [", "line 2: no YAML ("),
        ("{[a]: b}", "line 1: no YAML (found unhashable key); correct it"),
        ("a: \0", "line 1: no YAML (a character that YAML forbids); correct it"),
        ("a: 2024-02-30", "a date or a number in it is not possible; put it in quotes"),
        ("a: " + "9" * 5000, "a date or a number in it is not possible; put it in quotes"),
        ("a: 1\n---\nb: 2", "line 2: no YAML (but found another document); correct it"),
    ],
)
def test_a_text_is_refused_soon_and_in_a_sentence(text: str, expected: str) -> None:
    started = time.process_time()
    with pytest.raises(ValueError) as caught:
        parse_yaml(text)
    assert expected in str(caught.value)
    assert "secret" not in str(caught.value)
    assert time.process_time() - started < 5  # it was more than a minute for LAUGHS


def test_a_text_at_the_limits_is_read() -> None:
    nested = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert parse_yaml(nested) is not None
    with pytest.raises(ValueError, match="nested deeper"):
        parse_yaml(f"[{nested}]")
    assert len(parse_yaml("- 1\n" * (MAX_NODES - 1))) == MAX_NODES - 1


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    large, binary, odd = (tmp_path / name for name in ("large.yaml", "binary.yaml", "odd.yaml"))
    large.write_bytes(b"#" * (MAX_BYTES + 1))
    binary.write_bytes(b"\xff\xfe\x00")
    odd.write_text("a: [\n")
    for path, expected in [
        (tmp_path, f"{tmp_path}: cannot be read (Is a directory); check the path"),
        (tmp_path / "none.yaml", "none.yaml: cannot be read (No such file or directory)"),
        (large, "large.yaml: the file is larger than 1,000,000 bytes"),
        (Path("/dev/zero"), "/dev/zero: the file is larger than 1,000,000 bytes"),
        (binary, "binary.yaml: no YAML, it is not UTF-8; check the path"),
        (odd, "odd.yaml, line 2: no YAML ("),
    ]:
        with pytest.raises(ValueError) as caught:
            read_yaml(path)
        assert expected in str(caught.value)


def test_a_stream_is_read_as_a_file_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    if (child := os.fork()) == 0:
        pipe.write_text("a: 1\n")
        os._exit(0)
    assert read_yaml(pipe) == {"a": 1}
    os.waitpid(child, 0)
