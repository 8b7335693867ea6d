"""Saved attachments: written whole and private, read back, damaged ones passed over."""

from __future__ import annotations

import pytest

from cni.attachment import Attachment
from cni.cache import AttachmentCache, Record
from sandbox.host.errors import InvalidArgument


def record(pod_id: str = "a1", **changes) -> Record:
    attachment = Attachment(
        pod_id=pod_id, netns_path="/n", pod_name="p", pod_namespace="d", pod_uid="u"
    )
    return Record(attachment=attachment, config='{"name":"net"}', **changes)


@pytest.fixture
def cache(tmp_path):
    return AttachmentCache(tmp_path / "cni")


def test_what_was_saved_is_loaded_until_it_is_removed(cache):
    cache.save(record())
    cache.save(record(result='{"ips":[]}'))
    assert cache.load("a1", "eth0") == record(result='{"ips":[]}')
    assert cache.load("a1", "eth1") is None

    cache.remove("a1", "eth0")
    cache.remove("a1", "eth0")
    assert cache.load("a1", "eth0") is None


def test_files_and_directories_are_roots_alone(cache, tmp_path):
    cache.save(record())
    assert (tmp_path / "cni" / "results").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "cni" / "results" / "a1-eth0.json").stat().st_mode & 0o777 == 0o600


def test_tidying_removes_what_was_being_written(cache, tmp_path):
    cache.tidy()
    cache.save(record())
    (tmp_path / "cni" / "results" / ".0123456789abcdef.tmp").touch()
    cache.tidy()
    assert [p.name for p in (tmp_path / "cni" / "results").iterdir()] == ["a1-eth0.json"]


def test_all_of_them(cache):
    assert cache.all() == []
    cache.save(record("a1"))
    cache.save(record("b2"))
    assert {r.attachment.pod_id for r in cache.all()} == {"a1", "b2"}


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"config": 5}', b"\xff", b"[" * 100_000])
def test_a_damaged_file_is_as_none_and_does_not_hide_the_others(cache, tmp_path, text):
    cache.save(record("b2"))
    (tmp_path / "cni" / "results" / "a1-eth0.json").write_bytes(text)

    assert cache.load("a1", "eth0") is None
    assert [r.attachment.pod_id for r in cache.all()] == ["b2"]

    cache.save(record("a1"))
    assert cache.load("a1", "eth0") == record("a1")


@pytest.mark.parametrize("pod_id", ["../../etc/x", "a/b", ""])
def test_no_path_leads_out_of_the_directory(cache, pod_id):
    for call in (
        lambda: cache.save(record(pod_id)),
        lambda: cache.load(pod_id, "eth0"),
        lambda: cache.remove(pod_id, "eth0"),
        lambda: cache.load("a1", "../x"),
    ):
        with pytest.raises(InvalidArgument):
            call()
