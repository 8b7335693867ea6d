from sandbox.host.cgroup_dirs import below, read


def test_a_directory_without_others_is_itself_alone(tmp_path):
    (tmp_path / "cgroup.procs").touch()
    assert list(below(tmp_path)) == [tmp_path]


def test_the_deepest_come_first(tmp_path):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "c").mkdir()
    found = list(below(tmp_path))
    assert set(found) == {inner, inner.parent, tmp_path / "c", tmp_path}
    assert found.index(inner) < found.index(inner.parent)
    assert found[-1] == tmp_path


def test_what_is_not_there_has_nothing(tmp_path):
    assert list(below(tmp_path / "absent")) == []
    assert read(tmp_path / "absent") is None


def test_a_long_file_is_read_to_its_end(tmp_path):
    text = "\n".join(map(str, range(20_000)))
    (tmp_path / "cgroup.procs").write_text(f"{text}\n")
    assert read(tmp_path / "cgroup.procs") == text
