from pathlib import Path

import pytest

from cri import settings_table as table
from cri.config import detect_cgroup_driver, flag_value, load, toml_text
from cri.config_files import ConfigInvalid, line_numbers
from cri.render import config_text
from imageservice.proxies import Proxies
from sandbox.host.errors import InvalidArgument


@pytest.fixture
def main(tmp_path, monkeypatch):
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"):  # a developer's own
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return tmp_path / "config.toml"


def drop_in(main, name, text):
    directory = main.parent / "config.d"
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(text)


def problems_of(main, text, **overrides):
    main.write_text(text)
    with pytest.raises(ConfigInvalid) as caught:
        load(main, overrides)
    return caught.value.problems


def test_nothing_configured_gives_the_packages_own_defaults(main):
    from cni.settings import CniSettings
    from imageservice.settings import ImageSettings
    from metrics.settings import MetricsSettings
    from sandbox.settings import SandboxSettings

    main.write_text("")
    config = load(main)
    assert config.cni() == CniSettings()
    assert config.images() == ImageSettings()
    assert config.metrics() == MetricsSettings()
    assert config.sandbox() == SandboxSettings(cgroup_driver=detect_cgroup_driver())
    assert config.socket == Path("/run/podwright/podwright.sock")
    assert set(config.origins.values()) == {"default"}


def test_the_table_knows_every_setting_once():
    keys = [setting.key for setting in table.TABLE]
    assert len(keys) == len(set(keys))
    assert len(keys) > 40
    for setting in table.TABLE:
        assert setting.help, setting.key
        if setting.default is not None:
            # What `podwright config` prints for a default must be readable again.
            assert setting.parse(flag_value(toml_text(setting.default))) == setting.default


def test_later_sources_win_key_by_key_and_are_named(main):
    main.write_text('[cni]\nip_pref = "ipv6"\nadd_timeout_s = 1\n[daemon]\nlog_level = "debug"\n')
    drop_in(main, "20.toml", "# comment\n[cni]\nadd_timeout_s = 2\n")
    drop_in(main, "10.toml", "[cni]\nadd_timeout_s = 3\n")
    drop_in(main, "30.conf", "[cni]\nadd_timeout_s = 4\n")
    config = load(main, {"daemon.log_level": "error"})
    assert config.cni().add_timeout_s == 2
    assert config.cni().ip_pref == "ipv6"
    assert config.get(table.LOG_LEVEL) == "error"
    assert config.origins["cni.add_timeout_s"] == f"{main.parent}/config.d/20.toml:3"
    assert config.origins["cni.ip_pref"] == f"{main}:2"
    assert config.origins["daemon.log_level"] == "flag"
    assert config.origins["cni.poll_s"] == "default"
    assert [file.name for file in config.files] == ["config.toml", "10.toml", "20.toml"]


def test_roots_move_what_lies_below_them(main):
    main.write_text('[daemon]\nrun_root = "/r"\nstate_root = "/s"\n')
    config = load(main)
    assert config.socket == Path("/r/podwright.sock")
    assert config.cni().cache_dir == Path("/s/cni")
    assert config.images().root == Path("/s/images")
    assert config.sandbox().handler("crun").root == Path("/r/runtime/crun")


def test_runtime_handlers_are_changed_and_added(main):
    main.write_text(
        '[runtimes.crun]\npath = "/opt/crun"\n'
        '[runtimes.kata]\npath = "/usr/bin/kata"\noptions = ["--debug"]\n'
        'allowed_annotations = ["io.katacontainers.*"]\n[runtime]\ndefault = "kata"\n'
    )
    config = load(main)
    sandbox = config.sandbox()
    assert [handler.name for handler in sandbox.handlers] == ["crun", "runc", "kata"]
    assert sandbox.handler("crun").path == Path("/opt/crun")
    assert sandbox.handler("").name == "kata"
    assert sandbox.handler("kata").options == ("--debug",)
    assert config.origins["runtimes.kata.options"] == f"{main}:5"


def test_all_problems_are_told_at_once_with_their_places(main):
    problems = problems_of(
        main,
        '[cni]\nconf_dirs = "/x"\nadd_timeout_s = "1"\n[cnj]\na = 1\n[runtimes.x]\nroot = "/x"\n'
        "rot = 1\n[image]\nmax_concurrent_downloads = 0\n",
    )
    assert problems == (
        f"{main}:2: unknown key in [cni]: conf_dirs; did you mean conf_dir?",
        f"{main}:3: cni.add_timeout_s: expected a number of seconds",
        f"{main}:5: unknown section: cnj; did you mean cni?",
        f"{main}:8: unknown key in [runtimes.x]: rot; did you mean root?",
        f"{main}:10: image.max_concurrent_downloads: expected a whole number from 1 to 64",
        "runtimes.x: path is missing",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a", "Expected"),
        ("a = 1", "unknown section: a"),
        ("[runtimes]\ncrun = 1\n", "unknown key in [runtimes.crun]"),
        ('[daemon]\nrun_root = "run"\n', "expected an absolute path"),
        ('[daemon]\nlog_level = "loud"\n', "expected one of debug, info, warning, error"),
        ('[runtime]\ndefault = "kata"\n', "no such runtime handler"),
        ("[cni]\nbin_dirs = []\n", "no directory for network plugins"),
        ('[cni]\nenvironment = ["A"]\n', "NAME=value"),
        ('[runtimes.crun]\noptions = ["-x"]\n', "must start with --"),
        ('[runtimes."a/b"]\npath = "/x"\n', "cannot be a directory name"),
        ('[metrics]\naddress = "localhost:1"\n', "IP:PORT"),
        ("[cni]\npoll_s = -1\n", "expected 0 to"),
        ("[cni]\npoll_s = nan\n", "expected 0 to"),
        ("[cni]\npoll_s = true\n", "number of seconds"),
    ],
)
def test_what_is_refused(main, text, problem):
    assert problem in problems_of(main, text)[0]


def test_a_named_file_must_exist_and_the_default_one_need_not(main):
    with pytest.raises(ConfigInvalid, match="No such file"):
        load(main)


def test_files_are_bounded_and_text(main):
    assert "larger than" in problems_of(main, "#" * (1024 * 1024 + 1))[0]
    main.write_bytes(b"\xff")
    with pytest.raises(ConfigInvalid, match="utf-8"):
        load(main)


def test_problem_count_is_in_the_message(main):
    main.write_text("a = 1\nb = 1\nc = 1\n")
    with pytest.raises(InvalidArgument, match=r"unknown section: a.*and 2 more"):
        load(main)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("true", True), ("debug", "debug"), ('["/a"]', ["/a"]), ("/a", "/a"), ("1.5", 1.5)],
)
def test_values_of_flags(text, value):
    assert flag_value(text) == value


def test_unknown_flag_keys_are_refused(main):
    assert problems_of(main, "", **{"daemon.log_leve": "x"}) == (
        "flag: unknown key in [daemon]: log_leve; did you mean log_level?",
    )


def test_cgroup_driver_follows_the_node(tmp_path):
    assert detect_cgroup_driver(tmp_path) == "systemd"
    assert detect_cgroup_driver(tmp_path / "none") == "cgroupfs"


def test_lines_of_keys():
    text = 'rot = 1\n\n[a] # x\n b = 1\n[ runtimes."x" ]\npath = 2\n'
    assert line_numbers(text) == {".rot": 1, "a.b": 4, "runtimes.x.path": 6}


PROXY = "http://canary:canary@p.example:3128"


def test_proxies_come_from_the_environment_as_in_go(main):
    environ = {
        "HTTPS_PROXY": PROXY,
        "https_proxy": "http://other.example",
        "HTTP_PROXY": "",
        "http_proxy": "plain.example:1",
        "no_proxy": "a, .b,10.0.0.0/8",
    }
    main.touch()
    config = load(main, environ=environ)
    proxies = config.images().proxies
    assert proxies.https is not None
    assert proxies.https.secret_url == PROXY
    assert str(proxies.http) == "http://plain.example:1"
    assert proxies.exceptions == ("a", ".b", "10.0.0.0/8")
    assert config.origins["image.https_proxy"] == "environment HTTPS_PROXY"
    assert config.origins["image.no_proxy"] == "environment no_proxy"
    assert load(main, environ={}).images().proxies == Proxies()


def test_a_file_says_of_proxies_what_counts(main):
    main.write_text('[image]\nhttps_proxy = ""\nno_proxy = []\n')
    environ = {"HTTPS_PROXY": PROXY, "HTTP_PROXY": PROXY, "NO_PROXY": "a"}
    proxies = load(main, environ=environ).images().proxies
    assert proxies.https is None
    assert proxies.http is not None
    assert proxies.exceptions == ()


def test_a_proxy_of_the_environment_that_cannot_be_used_is_left_out_and_told(main):
    main.touch()
    config = load(main, environ={"HTTPS_PROXY": "socks5://canary:canary@p.example:1080"})
    assert config.images().proxies == Proxies()
    told = config.origins["image.https_proxy"]
    assert told.startswith("environment HTTPS_PROXY is not used: ")
    assert "canary" not in told


def test_a_proxy_of_a_file_that_cannot_be_used_is_refused_and_not_quoted(main):
    main.write_text('[image]\nhttps_proxy = "socks5://canary:canary@p.example"\n')
    with pytest.raises(ConfigInvalid) as caught:
        load(main, environ={})
    [problem] = caught.value.problems
    assert f"{main}:2: image.https_proxy: expected a proxy" in problem
    assert "canary" not in problem


def test_the_password_of_a_proxy_is_not_printed(main):
    main.touch()
    config = load(main, environ={"HTTPS_PROXY": PROXY})
    text = config_text(config) + repr(config) + repr(config.images())
    assert 'https_proxy = "http://[redacted]@p.example:3128"  # environment HTTPS_PROXY' in text
    assert "canary" not in text


def test_roots_are_told_as_the_kernel_names_them(tmp_path):
    """/var/run is a link on every machine, and a list of mounts knows no links."""
    real = tmp_path / "run"
    real.mkdir()
    (tmp_path / "var").symlink_to(real)
    main = tmp_path / "config.toml"
    main.write_text(
        f'[daemon]\nrun_root = "{tmp_path}/var/podwright"\nstate_root = "{tmp_path}/var/lib"\n'
    )
    config = load(main)
    assert config.sandbox().run_root == real / "podwright"
    assert config.sandbox().state_root == real / "lib"
    assert config.images().root == real / "lib" / "images"
