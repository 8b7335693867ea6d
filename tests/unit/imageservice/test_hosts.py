"""certs.d as containerd's users wrote it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imageservice.errors import HostsConfigInvalid
from imageservice.registry.hosts import HostsDirectory
from imageservice.registry.origins import Origin


def write(root: Path, domain: str, text: str, name: str = "hosts.toml") -> Path:
    directory = root / domain
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(text)
    return directory


def urls(root: Path, domain: str) -> list[str]:
    return [f"{e.origin}{e.path}" for e in HostsDirectory([root]).endpoints(domain)]


@pytest.mark.parametrize(
    ("domain", "url"),
    [
        ("docker.io", "https://registry-1.docker.io/v2"),
        ("ghcr.io", "https://ghcr.io/v2"),
        ("host:5000", "https://host:5000/v2"),
        ("localhost:5000", "http://localhost:5000/v2"),
        ("localhost", "http://localhost/v2"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000/v2"),
        ("[::1]:5000", "http://[::1]:5000/v2"),
        ("10.0.0.1:5000", "https://10.0.0.1:5000/v2"),
    ],
)
def test_without_configuration(tmp_path, domain, url):
    [endpoint] = HostsDirectory([tmp_path, tmp_path / "missing"]).endpoints(domain)
    assert f"{endpoint.origin}{endpoint.path}" == url
    assert endpoint.is_origin
    assert endpoint.namespace == ""
    assert endpoint.tls.verify


def test_order_is_that_of_the_file_and_the_server_comes_last(tmp_path):
    write(
        tmp_path,
        "docker.io",
        'server = "https://registry-1.docker.io"\n'
        '[host."https://z.example"]\n[host."http://a.example:8080"]\n[host."m.example/prefix"]\n',
    )
    assert urls(tmp_path, "docker.io") == [
        "https://z.example/v2",
        "http://a.example:8080/v2",
        "https://m.example/prefix/v2",
        "https://registry-1.docker.io/v2",
    ]


def test_mirrors_learn_the_registrys_name_and_the_registry_does_not(tmp_path):
    write(tmp_path, "docker.io", '[host."https://m.example"]\n')
    mirror, origin = HostsDirectory([tmp_path]).endpoints("docker.io")
    assert (mirror.namespace, mirror.is_origin) == ("docker.io", False)
    assert (origin.namespace, origin.is_origin) == ("", True)


def test_a_table_for_the_registry_itself_is_the_registry(tmp_path):
    write(tmp_path, "r.example", '[host."https://r.example"]\nskip_verify = true\n')
    [endpoint] = HostsDirectory([tmp_path]).endpoints("r.example")
    assert endpoint.is_origin
    assert not endpoint.tls.verify


@pytest.mark.parametrize(
    ("domain", "server", "is_origin"),
    [
        ("r.example", "https://r.example", True),
        ("r.example", "http://r.example", True),
        ("r.example", "https://r.example:443", True),
        ("r.example", "https://r.example:8443", False),
        ("r.example:5000", "http://r.example:5000", True),
        ("r.example:5000", "https://r.example:5001", False),
        ("r.example", "https://other.example", False),
        ("docker.io", "https://registry-1.docker.io", True),
        ("docker.io", "http://registry-1.docker.io", False),
        ("docker.io", "https://docker.io", False),
    ],
)
def test_who_is_the_registry_itself(tmp_path, domain, server, is_origin):
    write(tmp_path, domain, f'server = "{server}"\n')
    [endpoint] = HostsDirectory([tmp_path]).endpoints(domain)
    assert endpoint.is_origin is is_origin


def test_fields(tmp_path):
    directory = write(
        tmp_path,
        "r.example",
        """
        server = "https://up.example"
        capabilities = ["pull"]
        [host."https://m.example/v2/mirror"]
          override_path = true
          capabilities = ["pull", "resolve"]
          skip_verify = true
          ca = ["ca.pem", "/etc/hostname"]
          client = [["c.pem", "c.key"], ["both.pem", ""]]
          [host."https://m.example/v2/mirror".header]
            x-one = "1"
            x-two = ["a", "b"]
        """,
    )
    for name in ("ca.pem", "c.pem", "c.key", "both.pem"):
        (directory / name).write_text("")
    mirror, server = HostsDirectory([tmp_path]).endpoints("r.example")
    assert mirror.path == "/v2/mirror"
    assert mirror.capabilities == {"pull", "resolve"}
    assert not mirror.tls.verify
    assert mirror.tls.ca_files == (str(directory / "ca.pem"), "/etc/hostname")
    assert mirror.tls.client_pairs == (
        (str(directory / "c.pem"), str(directory / "c.key")),
        (str(directory / "both.pem"), ""),
    )
    assert mirror.headers == (("x-one", "1"), ("x-two", "a"), ("x-two", "b"))
    assert server.capabilities == {"pull"}
    assert server.tls.verify
    assert "x-one" not in repr(mirror)


@pytest.mark.parametrize("directory", ["r.example:5000", "r.example_5000_", "_default"])
def test_directory_names(tmp_path, directory):
    write(tmp_path, directory, '[host."https://m.example"]\n')
    assert urls(tmp_path, "r.example:5000")[0] == "https://m.example/v2"


def test_the_default_directory_keeps_each_registrys_own_server(tmp_path):
    write(tmp_path, "_default", '[host."https://m.example"]\n')
    assert urls(tmp_path, "ghcr.io") == ["https://m.example/v2", "https://ghcr.io/v2"]
    write(tmp_path, "ghcr.io", "")
    assert urls(tmp_path, "ghcr.io") == ["https://ghcr.io/v2"]


def test_the_first_root_that_knows_a_registry_wins(tmp_path):
    ours, theirs = tmp_path / "a", tmp_path / "b"
    write(theirs, "r.example", '[host."https://theirs.example"]\n')
    directory = HostsDirectory([ours, theirs])
    assert directory.endpoints("r.example")[0].origin.host == "theirs.example"
    write(ours, "r.example", '[host."https://ours.example"]\n')
    assert directory.endpoints("r.example")[0].origin.host == "ours.example"


def test_a_change_is_seen_without_restart_and_what_did_not_change_is_kept(tmp_path):
    write(tmp_path, "r.example", '[host."https://one.example"]\n')
    directory = HostsDirectory([tmp_path])
    first = directory.endpoints("r.example")
    assert directory.endpoints("r.example") is first
    path = write(tmp_path, "r.example", '[host."https://two.example"]\n') / "hosts.toml"
    os.utime(path, ns=(1, 1))
    assert directory.endpoints("r.example")[0].origin.host == "two.example"


def test_docker_style_files(tmp_path):
    for name in ("a.crt", "node.cert", "node.key"):
        directory = write(tmp_path, "r.example:5000", "", name)
    [endpoint] = HostsDirectory([tmp_path]).endpoints("r.example:5000")
    assert endpoint.tls.ca_files == (str(directory / "a.crt"),)
    assert endpoint.tls.client_pairs == (
        (str(directory / "node.cert"), str(directory / "node.key")),
    )


@pytest.mark.parametrize(
    "text",
    [
        "server = ",
        "server = 1",
        'server = "ftp://x"',
        'server = "https://u:p@x"',
        'server = "https://"',
        'server = "https://x/?a=b"',
        "host = 1",
        '[host]\n"https://m" = 1',
        'skip_verify = "yes"',
        "override_path = 1",
        "capabilities = 1",
        'capabilities = ["pul"]',
        "ca = [1]",
        'ca = "missing.pem"',
        "client = 1",
        'client = [["a", "b", "c"]]',
        "header = 1",
        "[header]\nx = 1",
        '[header]\n"x y" = "1"',
        '[header]\nx = "a\\r\\nb"',
        '[header]\nHost = "x"',
        "\0",
        "a = " + "[" * 5000,
    ],
)
def test_a_fault_is_named_with_its_file(tmp_path, text):
    write(tmp_path, "r.example", text)
    with pytest.raises(HostsConfigInvalid) as caught:
        HostsDirectory([tmp_path]).endpoints("r.example")
    assert str(tmp_path) in str(caught.value)


def test_a_file_without_end_is_not_read(tmp_path):
    path = write(tmp_path, "r.example", "") / "hosts.toml"
    with path.open("r+b") as file:
        file.truncate(5 << 30)
    with pytest.raises(HostsConfigInvalid, match="larger"):
        HostsDirectory([tmp_path]).endpoints("r.example")


def test_plain_http_counts_only_from_a_hosts_own_directory(tmp_path):
    write(tmp_path, "plain.example", 'server = "http://plain.example"\n')
    write(tmp_path, "_default", '[host."http://other.example"]\n')
    directory = HostsDirectory([tmp_path])
    assert directory.is_plain_http(Origin("http", "plain.example", 80))
    assert not directory.is_plain_http(Origin("http", "plain.example", 8080))
    assert not directory.is_plain_http(Origin("http", "other.example", 80))
    assert not directory.is_plain_http(Origin("https", "plain.example", 443))


def test_tls_towards_a_stranger_keeps_trust_and_drops_identity_and_laxness(tmp_path):
    for name in ("ca.pem", "c.pem"):
        write(tmp_path, "r.example", "", name)
    write(tmp_path, "r.example", 'ca = "ca.pem"\nclient = "c.pem"\nskip_verify = true\n')
    directory = HostsDirectory([tmp_path])
    [endpoint] = directory.endpoints("r.example")
    assert directory.tls_towards(Origin("https", "r.example", 8443), endpoint) is endpoint.tls
    stranger = directory.tls_towards(Origin("https", "cdn.example", 443), endpoint)
    assert stranger.verify
    assert stranger.client_pairs == ()
    assert stranger.ca_files == endpoint.tls.ca_files
    write(tmp_path, "cdn.example", "skip_verify = true\n")
    assert not directory.tls_towards(Origin("https", "cdn.example", 443), endpoint).verify
