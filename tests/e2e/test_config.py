"""Configuration: file, environment, flags; `bim config check`."""

import json
import re

import pytest

from lib.client import Client, ROOT
from lib.daemon import bim, to_toml

USAGE = 2


def check(path, *args, **options):
    return bim("config", "check", "--config", path, *args, **options)


@pytest.fixture
def config(scratch):
    def write(text):
        path = scratch / "bim.toml"
        path.write_text(text)
        return path
    return write


@pytest.mark.parametrize("text,line,words", [
    ('[api]\nlistn = ["127.0.0.1:0"]\n', 2, ["listn", "listen"]),
    ("[disks]\npaths = []\ncheck_intervall = \"5s\"\n", 3,
     ["check_intervall", "check_interval"]),
    ("[sorces]\nallow_file = true\n", 2, ["sorces", "sources"]),
    ("[log]\nlevel = \"loud\"\n", 2, ["loud", "debug"]),
    ("[disks]\ncheck_interval = 5\n", 2, ["check_interval", "duration", "5"]),
    ("[disks]\ncheck_interval = \"5 parsecs\"\n", 2, ["parsecs"]),
    ("[disks]\npaths = \"/a\"\n", 2, ["paths"]),
    ("[disks]\npaths = [\"relative\"]\n", 2, ["relative", "absolute"]),
    ("[transfers]\nmax = -1\n", 2, ["max"]),
    ("[transfers]\nmax = 0\n", 2, ["max"]),
    ("[sources]\nallow_file = \"yes\"\n", 2, ["allow_file"]),
    ("[sources]\nmax_image_size = \"1 furlong\"\n", 2, ["max_image_size"]),
    ("[api]\nlisten = [\"localhost\"]\n", 2, ["listen", "localhost"]),
    ("[api]\nsocket = \"/run/x.sock\"\n", 2, ["socket", "unix:"]),
    ("[api\nlisten = []\n", 1, []),
    ("listen = [\"127.0.0.1:0\"]\n", 1, ["listen"]),
    ("[disks]\nfile_mode = \"0777\"\n", 2, ["file_mode"]),
    ("[sources]\nproxy = \"ftp://h\"\n", 2, ["proxy"]),
])
def test_mistakes_name_the_place_and_the_way_out(config, text, line, words):
    path = config(text)
    done = check(path)
    assert done.returncode == USAGE and done.stdout == ""
    assert f"bim: {path}:{line}: " in done.stderr, done.stderr
    for word in words:
        assert word in done.stderr
    # The daemon says the same, and does not start.
    daemon = bim("daemon", "--config", path)
    assert daemon.returncode == USAGE
    assert f"{path}:{line}: " in daemon.stderr
    told = json.loads(check(path, "-o", "json").stdout)
    assert told["ok"] is False and told["errors"]


def test_all_mistakes_at_once(config):
    done = check(config("[api]\nlistn = []\n[log]\nlevel = \"x\"\nfromat = \"json\"\n"))
    assert len(done.stderr.splitlines()) == 3


def test_a_missing_file(scratch):
    path = scratch / "none.toml"
    done = check(path)
    assert done.returncode == USAGE and str(path) in done.stderr


def effective(path, *args, **options):
    done = check(path, *args, "-o", "json", **options)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["ok"] is True
    return {s["key"]: (s["value"], s["origin"]) for s in told["settings"]}


def test_later_places_win(config):
    path = config('[log]\nlevel = "warn"\nformat = "json"\n[transfers]\nmax = 3\n'
                  '[disks]\npaths = ["/a"]\n')
    env = {"BIM_LOG_LEVEL": "error", "BIM_TRANSFERS_MAX": "4",
           "BIM_DISKS_PATHS": "/b,/c"}
    values = effective(path, "--transfers-max", "5", env=env)
    assert values["log.format"] == ("json", f"{path}:3")
    assert values["log.level"] == ("error", "environment BIM_LOG_LEVEL")
    assert values["transfers.max"] == (5, "flag --transfers-max")
    assert values["disks.paths"] == (["/b", "/c"], "environment BIM_DISKS_PATHS")
    assert values["backoff.first"] == ("1m", "default")
    values = effective(path, "--disk", "/d", "--disk", "/e", env=env)
    assert values["disks.paths"][0] == ["/d", "/e"]
    # The file by environment.
    done = bim("config", "check", "-o", "json", env={"BIM_CONFIG": str(path)})
    assert json.loads(done.stdout)["file"] == str(path)


def test_mistakes_elsewhere(config):
    path = config("")
    done = check(path, env={"BIM_LOG_LEVEL": "loud"})
    assert done.returncode == USAGE and "BIM_LOG_LEVEL" in done.stderr
    done = check(path, env={"BIM_LOG_LEVL": "info"})
    assert done.returncode == USAGE and "BIM_LOG_LEVL" in done.stderr
    done = check(path, "--log-level", "loud")
    assert done.returncode == USAGE and "--log-level" in done.stderr


def test_the_environment_reaches_the_daemon(start_daemon, disks):
    one = disks.directory("one")
    daemon = start_daemon(env={"BIM_DISKS_PATHS": str(one)}, run=False)
    del daemon.config["disks"]["paths"]
    daemon.start()
    assert [d.path for d in daemon.client.list_disks()] == [str(one)]


def test_flags_reach_the_daemon(start_daemon, disks):
    one = disks.directory("one")
    daemon = start_daemon(run=False)
    daemon.start(extra_args=["--disk", str(one), "--log-format", "json"])
    assert [d.path for d in daemon.client.list_disks()] == [str(one)]
    lines = [line for line in daemon.log().splitlines() if line]
    assert lines
    for line in lines:
        json.loads(line)


def test_what_is_reachable_from_outside_is_warned_of(config):
    path = config('[api]\nlisten = [":9500"]\n')
    told = json.loads(check(path, "-o", "json").stdout)
    assert told["ok"] is True and any(":9500" in w for w in told["warnings"])
    told = json.loads(check(config(""), "-o", "json").stdout)
    assert told["warnings"] == []


def test_the_documentation_is_true(config):
    """docs/configuration.md has every key with its default, and no other."""
    text = (ROOT / "docs" / "configuration.md").read_text()
    documented = dict(re.findall(r"^\| `(\w+\.\w+)` \| `([^`]*)` \|", text, re.M))
    values = effective(config(""))
    assert set(documented) == set(values)
    for key, (value, _) in values.items():
        written = f"[x]\n{key.split('.')[1]} = {documented[key]}\n"
        # What the page shows as default is read as just that.
        section, name = key.split(".")
        shown = effective(config(f"[{section}]\n{name} = {documented[key]}\n"))
        assert shown[key][0] == value, written


def test_the_example_file_is_true(config):
    """systemd/bim.toml: as it is, and with every line that is commented out."""
    text = (ROOT / "systemd" / "bim.toml").read_text()
    defaults = effective(config(""))
    assert {k: v[0] for k, v in effective(config(text)).items()} == {
        k: v[0] for k, v in defaults.items()}
    active = re.sub(r"^#(?=\w+ = )", "", text, flags=re.M)
    values = effective(config(active))
    assert {k: v[0] for k, v in values.items()} == {k: v[0] for k, v in defaults.items()}
    assert all(origin != "default" for _, origin in values.values())


def test_the_api_is_that_of_the_file(start_daemon, disk):
    daemon = start_daemon([disk])
    assert Client(daemon.address).version_get().api_version == 4
    assert to_toml(daemon.config)  # as written
