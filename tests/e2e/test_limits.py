"""How fast and how many at once, changed while it runs."""

import json
import threading
import time

import grpc
import pytest

from lib import images
from lib.client import EVENT, pb, refused
from lib.deadline import scaled, wait_until
from lib.images import MIB
from lib.servers import Content

RATE_FIELDS = ("download_rate", "peer_rate", "background_read_rate")
COUNT_FIELDS = ("transfers", "transfers_per_disk")
DEFAULTS = {"download_rate": 0, "peer_rate": 0, "background_read_rate": 0,
            "transfers": 8, "transfers_per_disk": 4}


def values(limits):
    return {f: getattr(limits, f) for f in RATE_FIELDS + COUNT_FIELDS}


def took(began):
    return time.monotonic() - began


# ----------------------------------------------------------- get and set


def test_defaults_and_configuration(start_daemon):
    assert values(start_daemon().client.get_limits()) == DEFAULTS
    configured = start_daemon([], {
        "transfers": {"max": 3, "max_per_disk": 2},
        "limits": {"download_rate": "1MiB", "peer_rate": "2MiB",
                   "background_read_rate": 65536}})
    expected = {"download_rate": MIB, "peer_rate": 2 * MIB,
                "background_read_rate": 65536, "transfers": 3,
                "transfers_per_disk": 2}
    assert values(configured.client.get_limits()) == expected
    # What is set counts until a restart.
    answer = configured.client.set_limits(peer_rate=0, transfers=7)
    expected.update(peer_rate=0, transfers=7)
    assert values(answer) == expected == values(configured.client.get_limits())
    configured.restart()
    expected.update(peer_rate=2 * MIB, transfers=3)
    assert values(configured.client.get_limits()) == expected


def test_every_field_is_present_in_the_answer(start_daemon):
    """Also those that are 0: no limit is an answer."""
    limits = start_daemon().client.get_limits()
    for field in RATE_FIELDS + COUNT_FIELDS:
        assert limits.HasField(field), field


def test_only_what_is_present_is_set(start_daemon):
    client = start_daemon().client
    expected = dict(DEFAULTS)
    for field, value in (("download_rate", 65536), ("peer_rate", 2 ** 40),
                         ("background_read_rate", 2 ** 63), ("transfers", 256),
                         ("transfers_per_disk", 1), ("download_rate", 0)):
        expected[field] = value
        assert values(client.set_limits(**{field: value})) == expected
    assert values(client.set_limits()) == expected
    assert values(client.limits.Set(pb.SetLimitsRequest(),
                                    timeout=scaled(10)).limits) == expected


@pytest.mark.parametrize("field,value", [
    *((f, v) for f in RATE_FIELDS for v in (1, 65535)),
    *((f, v) for f in COUNT_FIELDS for v in (0, 257, 2 ** 32 - 1))])
def test_out_of_bounds(start_daemon, field, value):
    """Refused as a whole."""
    client = start_daemon().client
    other = "peer_rate" if field != "peer_rate" else "download_rate"
    with refused(grpc.StatusCode.INVALID_ARGUMENT, field, value):
        client.set_limits(**{field: value, other: MIB})
    assert values(client.get_limits()) == DEFAULTS


# ------------------------------------------------------------------ rates


def test_download_rate(start_daemon, origin, disk):
    """Slow, then at once faster, without losing the transfer."""
    data = images.random_bytes(24 * MIB)
    client = start_daemon([disk], {"limits": {"download_rate": 2 * MIB}}).client
    client.ensure("a", origin.serve("/a", Content(data)), sha512=images.sha512(data))
    began = time.monotonic()
    client.wait_image("a", lambda i: i.copies[0].wire_bytes >= 5 * MIB, "5 MiB")
    # 2 MiB a second, after a quarter of a second's worth at once.
    assert took(began) >= 1.9
    seen = client.get("a")
    assert seen.state == "in-progress"
    # The rest would take 9 s.
    client.set_limits(download_rate=0)
    began = time.monotonic()
    ready = client.wait_ready("a")
    assert took(began) < scaled(5)
    assert ready.current_sha512 == images.sha512(data)
    assert ready.copies[0].wire_bytes == len(data)


def test_slower_while_it_runs(start_daemon, origin, disk):
    data = images.random_bytes(64 * MIB)
    daemon = start_daemon([disk], {"limits": {"download_rate": 4 * MIB}})
    client = daemon.client
    client.ensure("a", origin.serve("/a", Content(data)))
    client.wait_image("a", lambda i: i.copies[0].wire_bytes >= 2 * MIB, "2 MiB")
    client.set_limits(download_rate=65536)
    before, began = client.get("a").copies[0].wire_bytes, time.monotonic()
    # Other things are not slowed.
    client.set_limits(peer_rate=0)
    time.sleep(2)  # a window to measure in, not to wait for something
    gained = client.get("a").copies[0].wire_bytes - before
    # Pieces that were on their way at the change pass.
    assert gained <= 65536 * took(began) + 2 * MIB
    # However slow, it ends at once.
    began = time.monotonic()
    client.remove("a")
    assert took(began) < scaled(5)


def test_the_rate_is_of_all_together(start_daemon, origin, disk):
    contents = [images.random_bytes(4 * MIB, n) for n in range(3)]
    client = start_daemon([disk], {"limits": {"download_rate": 4 * MIB}}).client
    began = time.monotonic()
    for number, data in enumerate(contents):
        client.ensure(f"i{number}", origin.serve(f"/{number}", Content(data)))
    for number, data in enumerate(contents):
        assert client.wait_ready(f"i{number}").current_sha512 == images.sha512(data)
    assert took(began) >= 2.5, "12 MiB at 4 MiB a second"


@pytest.mark.parametrize("side", ["receiver", "sender"])
def test_peer_rate(start_daemon, start_peer, disk, side):
    """Of what is received, and of what is sent, each for itself."""
    data = images.random_bytes(16 * MIB)
    slow = {"limits": {"peer_rate": 2 * MIB}}
    # file:// counts neither.
    peer = start_peer({"a": data}, config=slow if side == "sender" else {})
    daemon = start_daemon([disk], slow if side == "receiver" else {})
    client = daemon.client
    client.ensure("a", uuid="u-a", peers=[peer.address])
    began = time.monotonic()
    client.wait_image("a", lambda i: i.copies[0].wire_bytes >= 5 * MIB, "5 MiB")
    assert took(began) >= 1.9
    (peer if side == "sender" else daemon).client.set_limits(peer_rate=0)
    began = time.monotonic()
    ready = client.wait_ready("a")
    assert took(began) < scaled(4), "the rest would take 5 s"
    assert ready.current_sha512 == images.sha512(data)


def test_peer_rate_does_not_slow_downloads_nor_the_other_way(start_daemon, origin,
                                                             start_peer, disk):
    data = images.random_bytes(8 * MIB)
    peer = start_peer({"p": data})
    daemon = start_daemon([disk], {"limits": {"peer_rate": 65536}})
    client = daemon.client
    client.ensure("a", origin.serve("/a", Content(data)))
    client.wait_ready("a", 10)
    client.set_limits(peer_rate=0, download_rate=65536)
    client.ensure("p", uuid="u-p", peers=[peer.address])
    client.wait_ready("p", 10)


def test_background_read_rate(start_daemon, files, disk):
    data = images.random_bytes(16 * MIB)
    (files / "a").write_bytes(data)
    daemon = start_daemon([disk], {"sources": {"allow_file": True},
                                   "limits": {"background_read_rate": 4 * MIB}})
    client = daemon.client
    client.ensure("a", f"file://{files}/a")
    client.wait_ready("a", 3)  # bringing is no background
    began = time.monotonic()
    assert client.verify("a")[-1].ok
    assert took(began) >= 3, "16 MiB at 4 MiB a second"
    client.set_limits(background_read_rate=0)
    began = time.monotonic()
    assert client.verify("a")[-1].ok
    assert took(began) < scaled(2)
    # While it runs.
    client.set_limits(background_read_rate=65536)
    messages = client.images.Verify(pb.VerifyRequest(name="a"), timeout=scaled(30))
    next(messages)
    began = time.monotonic()
    client.set_limits(background_read_rate=0)
    last = list(messages)[-1]
    assert last.done and last.ok and took(began) < scaled(10)


def test_a_slow_verification_is_stopped_at_once(start_daemon, files, disk):
    (files / "a").write_bytes(images.random_bytes(16 * MIB))
    daemon = start_daemon([disk], {"sources": {"allow_file": True},
                                   "limits": {"background_read_rate": 65536}})
    daemon.client.ensure("a", f"file://{files}/a")
    daemon.client.wait_ready("a")
    next(daemon.client.images.Verify(pb.VerifyRequest(name="a")))
    daemon.stop(deadline=10)


# ----------------------------------------------------------------- counts


def busy(origin, count):
    """So many images whose bytes wait for a gate each; the gates."""
    gates = [threading.Event() for _ in range(count)]
    for number, gate in enumerate(gates):
        origin.serve(f"/{number}", Content(images.random_bytes(2 * MIB, number),
                                           gate=gate, gate_after=MIB))
    return gates


def running(client):
    return sorted(i.spec.name for i in client.list_all()
                  for c in i.copies if c.state in ("starting", "in-progress"))


def test_transfers(start_daemon, origin, disk):
    gates = busy(origin, 6)
    daemon = start_daemon([disk], {"transfers": {"max": 2, "max_per_disk": 200}})
    client = daemon.client
    watch = client.watch()
    watch.wait_type(EVENT.TYPE_SNAPSHOT_END)
    for number in range(6):
        client.ensure(f"i{number}", origin.url(f"/{number}"))
    wait_until(lambda: len({r.target for r in origin.requests}) == 2, "two requests")
    assert running(client) == ["i0", "i1"]
    waiting = client.get("i5")
    assert waiting.state == "pending" and waiting.copies[0].message
    # More: they start at once, without an end of another.
    client.set_limits(transfers=4)
    wait_until(lambda: running(client) == ["i0", "i1", "i2", "i3"], "four at once")
    # Fewer: those that run go on, no other starts.
    client.set_limits(transfers=1)
    for number in range(3):
        gates[number].set()
        client.wait_ready(f"i{number}")
        assert running(client) == [f"i{n}" for n in range(number + 1, 4)]
    gates[3].set()
    client.wait_ready("i3")
    wait_until(lambda: running(client) == ["i4"], "the next one alone")
    for gate in gates:
        gate.set()
    for number in range(6):
        client.wait_ready(f"i{number}")
    most = most_at_once(watch)
    assert most == 4, most


def most_at_once(watch):
    states, most = {}, 0
    for event in watch.events:
        if event.type == EVENT.TYPE_IMAGE:
            states[event.image.spec.name] = event.image.state
            most = max(most, sum(s in ("starting", "in-progress")
                                 for s in states.values()))
    return most


def test_transfers_per_disk(start_daemon, origin, disks):
    one, two = disks.directory("one"), disks.directory("two")
    gates = busy(origin, 6)
    client = start_daemon([one, two], {"transfers": {"max_per_disk": 1}}).client
    for number in range(6):
        client.ensure(f"i{number}", origin.url(f"/{number}"),
                      [one if number < 4 else two])
    wait_until(lambda: running(client) == ["i0", "i4"], "one a disk")
    client.set_limits(transfers_per_disk=3)
    wait_until(lambda: running(client) == ["i0", "i1", "i2", "i4", "i5"], "three")
    for gate in gates:
        gate.set()
    for number in range(6):
        client.wait_ready(f"i{number}")


def test_syncs_from_peers_count_too(start_daemon, start_peer, relay, disk):
    contents = {f"p{n}": images.random_bytes(2 * MIB, n) for n in range(3)}
    wire, address = relay(start_peer(contents), hold_at=1)
    client = start_daemon([disk], {"transfers": {"max": 1}}).client
    for name in contents:
        client.ensure(name, uuid=f"u-{name}", peers=[address])
    wire.wait_held()
    assert running(client) == ["p0"]
    client.set_limits(transfers=8)
    wait_until(lambda: running(client) == ["p0", "p1", "p2"], "all at once")
    wire.release()
    for name in contents:
        client.wait_ready(name)


# ----------------------------------------------------------- command line


def test_the_command_line(start_daemon):
    daemon = start_daemon()
    limits = daemon.cli_json("limits", "get")["limits"]
    assert limits == {"download_rate": "0", "peer_rate": "0",
                      "background_read_rate": "0", "transfers": 8,
                      "transfers_per_disk": 4}
    done = daemon.cli("limits", "set", "--download-rate", "10MiB", "--peer-rate",
                      "500MB", "--transfers", "16", "-o", "json", check=0)
    limits = json.loads(done.stdout)["limits"]
    assert limits == {"download_rate": str(10 * MIB), "peer_rate": "500000000",
                      "background_read_rate": "0", "transfers": 16,
                      "transfers_per_disk": 4}
    daemon.cli("limits", "set", "--background-read-rate", "65536",
               "--transfers-per-disk", "2", "--download-rate", "0", check=0)
    assert values(daemon.client.get_limits()) == {
        "download_rate": 0, "peer_rate": 500_000_000,
        "background_read_rate": 65536, "transfers": 16, "transfers_per_disk": 2}
    table = daemon.cli("limits", "get", check=0).stdout
    for word in ("download-rate", "peer-rate", "background-read-rate",
                 "transfers-per-disk", "16"):
        assert word in table
    for bad in (["--download-rate", "1KiB"], ["--transfers", "0"],
                ["--transfers-per-disk", "257"], ["--peer-rate", "fast"]):
        done = daemon.cli("limits", "set", *bad, check=2)
        assert done.stderr.startswith("bim: ")
    assert daemon.client.get_limits().transfers == 16


@pytest.mark.parametrize("section,key,value", [
    ("limits", "download_rate", 1000), ("limits", "peer_rate", "1KiB"),
    ("transfers", "max", 0), ("transfers", "max_per_disk", 257)])
def test_a_configuration_out_of_bounds(start_daemon, section, key, value):
    daemon = start_daemon([], {section: {key: value}}, run=False)
    daemon.spawn()
    assert daemon.wait_exit() == 2
    assert f"{section}.{key}" in daemon.log()


def test_holes_are_not_read(start_daemon, disk, files):
    """They cost nothing of the rate: a GiB of which 64 KiB are data."""
    path = files / "sparse"
    with open(path, "wb") as file:
        file.truncate(1024 * MIB)
        file.seek(512 * MIB)
        file.write(images.random_bytes(65536))
    client = start_daemon([disk], {"sources": {"allow_file": True}}).client
    client.ensure("a", f"file://{path}")
    client.wait_ready("a")
    client.set_limits(background_read_rate=65536)
    began = time.monotonic()
    assert client.verify("a")[-1].ok
    assert took(began) < scaled(30)
