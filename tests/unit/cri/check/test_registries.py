"""What `podwright check` says of credentials and proxies."""

from __future__ import annotations

from pathlib import Path

import pytest

from cri.check.finding import Level
from cri.check.registries import registries
from cri.config import load


@pytest.fixture
def main(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(
        f'[image]\nauth_file = "{tmp_path}/auth.json"\n'
        f'namespaced_auth_dir = "{tmp_path}/auth"\n'
        f'credential_helper_dirs = ["{tmp_path}/helpers"]\n'
    )
    (tmp_path / "auth" / "shop").mkdir(parents=True, mode=0o755)
    (tmp_path / "helpers").mkdir(mode=0o755)
    return path


def said(main: Path, **environ: str) -> dict[tuple[str, Level], str]:
    found = registries(load(main, environ=environ))
    return {(f.name, f.level): f"{f.detail} → {f.remedy}" for f in found}


def write(path: Path, text: str, mode: int = 0o600) -> None:
    path.write_text(text)
    path.chmod(mode)


def test_a_node_without_any(main):
    (main.parent / "auth" / "shop").rmdir()
    found = said(main)
    assert "none" in found["credentials", Level.OK]
    assert "0 programs" in found["credential helpers", Level.OK]
    assert "directly" in found["proxy", Level.OK]
    assert {level for _, level in found} == {Level.OK}


def test_what_is_used_is_counted(main):
    write(main.parent / "auth.json", '{"auths": {"a": {"auth": "dTpw"}, "b": {"auth": "dTpw"}}}')
    write(main.parent / "auth/shop/config.json", '{"credHelpers": {"c": "x"}}')
    write(main.parent / "helpers/docker-credential-x", "", 0o755)
    found = said(main)
    assert "2 files, for 3 hosts" in found["credentials", Level.OK]
    assert "1 programs" in found["credential helpers", Level.OK]
    assert {level for _, level in found} == {Level.OK}


def test_what_is_not_used_is_told_with_its_remedy(main):
    write(main.parent / "auth/shop/config.json", '{"auths": {}}', 0o644)
    write(main.parent / "helpers/docker-credential-x", "", 0o777)
    found = said(main)
    assert f"chmod 600 {main.parent}/auth/shop" in found["credentials", Level.WARNING]
    assert "can be written by others" in found["credential helpers", Level.WARNING]
    write(main.parent / "auth/shop/config.json", "canary")
    assert "canary" not in said(main)["credentials", Level.WARNING]
    (main.parent / "helpers/docker-credential-x").unlink()
    (main.parent / "helpers").rmdir()
    assert "does not exist" in said(main)["credential helpers", Level.WARNING]


def test_proxies_are_told_without_their_passwords(main):
    proxy = "http://canary:canary@p.example:3128"
    found = said(main, HTTPS_PROXY=proxy, HTTP_PROXY="socks5://canary@p", NO_PROXY="a,.b")
    told = found["proxy", Level.OK]
    assert "https through http://[redacted]@p.example:3128 (environment HTTPS_PROXY)" in told
    assert "but not for a, .b" in told
    assert "HTTP_PROXY is not used" in found["proxy", Level.WARNING]
    assert "image.http_proxy" in found["proxy", Level.WARNING]
    assert "canary" not in str(found)
