"""Compressed files and compressed answers are decoded on the way; what is
stored, and what the digests are of, is the image."""

import subprocess
import time

import pytest

from lib import images
from lib.deadline import scaled, wait_until
from lib.images import KIB, MIB
from lib.processes import proc_status_kib, run
from lib.servers import Content

TOOLS = {
    "gzip": (["gzip", "-1", "-c"], ".gz"),
    "xz": (["xz", "-0", "-c"], ".xz"),
    "zstd": (["zstd", "-q", "-1", "-c"], ".zst"),
}
ENCODINGS = sorted(TOOLS)


def packed(encoding, data):
    return subprocess.run(TOOLS[encoding][0], input=data, check=True,
                          stdout=subprocess.PIPE, timeout=60).stdout


def mixed(size=8 * MIB):
    """Some of it packs well, some not at all."""
    half = size // 2
    return images.random_bytes(half) + bytes(half // 2) + b"text " * (half // 10) \
        + b"\0" * (half - half // 2 - half // 10 * 5)


@pytest.fixture
def daemon(start_daemon, disk, files):
    return start_daemon([disk], {"sources": {"allow_file": True, "file_roots": [files]}})


def ends_ready(daemon, url, data, **spec):
    daemon.client.ensure("a", url, **spec)
    ready = daemon.client.wait_ready("a")
    assert ready.current_sha512 == images.sha512(data)
    assert ready.size == len(data)
    with open(ready.copies[0].file_path, "rb") as file:
        assert file.read() == data
    return ready


def fails(daemon, disk, url, *words, permanent=True, deadline=30, **spec):
    daemon.client.ensure("a", url, **spec)
    failed = daemon.client.wait_state("a", "failed", deadline)
    for word in words:
        assert str(word).lower() in failed.message.lower(), failed.message
    assert failed.copies[0].HasField("next_attempt") != permanent, failed.message
    assert not disk.temp_files()
    assert not disk.ready_file("a", failed.spec.uuid).exists()
    return failed


@pytest.mark.parametrize("over", ["http", "file"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_file_made_by_the_tool(daemon, nginx, files, encoding, over):
    image = images.qcow2(files / "a.qcow2", 64 * MIB, ((0, 3 * MIB), (9 * MIB, MIB)))
    name = "a.qcow2" + TOOLS[encoding][1]
    content = packed(encoding, image.data)
    (files / name).write_bytes(content)
    url = nginx.url(name) if over == "http" else f"file://{files / name}"
    ready = ends_ready(daemon, url, image.data, sha512=image.sha512,
                       sha256=image.sha256, size=image.size)
    copy = ready.copies[0]
    assert (ready.format, ready.virtual_size) == ("qcow2", 64 * MIB)
    assert ready.current_sha256 == image.sha256
    assert (copy.encoding, copy.encoded_size) == (encoding, len(content))
    assert copy.wire_bytes == len(content)
    assert copy.processed_bytes == image.size
    assert daemon.client.verify("a")[-1].ok


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_name_tells_nothing(daemon, origin, encoding):
    """The first bytes do; the length of such a file need not be one of an
    image."""
    data = mixed()
    content = packed(encoding, data)
    ready = ends_ready(daemon, origin.serve("/a.raw", Content(content)), data)
    assert ready.copies[0].encoding == encoding


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "xz", "x-gzip", "GZIP"])
def test_content_encoding(daemon, origin, encoding):
    data = mixed()
    kind = encoding.lower().replace("x-", "")
    url = origin.serve("/a", Content(packed(kind, data),
                                     headers={"Content-Encoding": encoding}))
    ready = ends_ready(daemon, url, data, sha512=images.sha512(data))
    assert ready.copies[0].encoding == kind


def test_an_encoded_answer_with_an_encoded_file(daemon, origin):
    data = mixed()
    content = packed("gzip", packed("zstd", data))
    url = origin.serve("/a", Content(content, headers={"Content-Encoding": "gzip"}))
    ends_ready(daemon, url, data)


def test_content_encoding_identity(daemon, origin):
    data = mixed()
    url = origin.serve("/a", Content(data, headers={"Content-Encoding": "identity"}))
    assert ends_ready(daemon, url, data).copies[0].encoding == ""


@pytest.mark.parametrize("encoding", ["br", "deflate", "compress", "gzip, br",
                                      "\x7f\x1b[31m"])
def test_unknown_encodings(daemon, disk, origin, encoding):
    url = origin.serve("/a", Content(mixed(), headers={"Content-Encoding": encoding}))
    failed = fails(daemon, disk, url, "gzip, xz or zstd")
    assert all(" " <= c <= "~" for c in failed.message)
    assert origin.count("/a") == 1


def test_an_encoding_that_is_not_there(daemon, disk, origin):
    """The server says gzip and sends none."""
    url = origin.serve("/a", Content(mixed(), headers={"Content-Encoding": "gzip"}))
    fails(daemon, disk, url, "gzip")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_wanted_digest_is_the_image_s(daemon, disk, origin, encoding):
    """Not that of the archive."""
    data = mixed()
    content = packed(encoding, data)
    url = origin.serve("/a", Content(content))
    fails(daemon, disk, url, images.sha512(data), sha512=images.sha512(content))


@pytest.mark.parametrize("damage", ["cut", "bit", "garbage behind"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_damaged(daemon, disk, origin, encoding, damage):
    content = packed(encoding, mixed())
    if damage == "cut":
        content = content[:len(content) * 2 // 3]
    elif damage == "bit":
        at = len(content) // 3
        content = content[:at] + bytes([content[at] ^ 1]) + content[at + 1:]
    else:
        content += b"garbage that is no stream" * 100
    failed = fails(daemon, disk, origin.serve("/a", Content(content)), encoding)
    assert origin.count("/a") == 1, failed.message


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_several_members(daemon, origin, encoding):
    """As "cat a.gz b.gz" makes them."""
    data = mixed()
    third = len(data) // 3 + 17
    content = b"".join(packed(encoding, data[at:at + third])
                       for at in range(0, len(data), third))
    ends_ready(daemon, origin.serve("/a", Content(content)), data)


def test_padding_behind_gzip_and_xz(daemon, origin):
    """Zeros, as tapes and some servers add them."""
    data = mixed(MIB)
    gz, xz = packed("gzip", data), packed("xz", data)
    gz += bytes(-len(gz) % 512)
    xz += bytes(-len(xz) % 4 + 512)
    ends_ready(daemon, origin.serve("/gz", Content(gz)), data)
    daemon.client.remove("a")
    ends_ready(daemon, origin.serve("/xz", Content(xz)), data)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_bytes_in_little_pieces(daemon, origin, encoding):
    data = mixed(256 * KIB)
    content = packed(encoding, data)
    ends_ready(daemon, origin.serve("/a", Content(content, piece=701)), data)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_nothing_in_it(daemon, disk, origin, encoding):
    fails(daemon, disk, origin.serve("/a", Content(packed(encoding, b""))), "nothing")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_odd_size_in_it(daemon, disk, origin, encoding):
    fails(daemon, disk, origin.serve("/a", Content(packed(encoding, mixed() + b"x"))),
          "512")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_another_size_in_it(daemon, disk, origin, encoding):
    data = mixed()
    url = origin.serve("/a", Content(packed(encoding, data)))
    fails(daemon, disk, url, "size", len(data) + 512, size=len(data) + 512)


@pytest.fixture(scope="module")
def bombs(tmp_path_factory):
    """10 GiB of zeros, by each tool, made once."""
    directory = tmp_path_factory.mktemp("bombs")
    # gzip takes a minute for 10 GiB; members of 64 MiB are the same to a reader.
    made = {}
    for encoding, (argv, suffix) in TOOLS.items():
        path = directory / f"bomb{suffix}"
        piece = run(["sh", "-c", f"head -c {64 * MIB} /dev/zero | {' '.join(argv)}"])
        path.write_bytes(piece.stdout * 160)
        made[encoding] = path
    return made


@pytest.mark.xdist_group("bombs")
@pytest.mark.parametrize("limit", ["max_image_size", "size"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_bomb(start_daemon, disk, bombs, encoding, limit):
    """Ends at the limit, not at the end of the disk or of the memory."""
    config = {"sources": {"allow_file": True, "max_image_size": "16TiB"}}
    spec = {"size": 64 * MIB} if limit == "size" else {}
    if limit == "max_image_size":
        config["sources"]["max_image_size"] = "64MiB"
    daemon = start_daemon([disk], config)
    begin = time.monotonic()
    fails(daemon, disk, f"file://{bombs[encoding]}", 64 * MIB, **spec)
    took = time.monotonic() - begin
    assert took < scaled(10), f"{took} s: more than it needs for 64 MiB"
    assert proc_status_kib(daemon.pid, "VmHWM") < scaled(192 * KIB)


@pytest.mark.xdist_group("bombs")
def test_memory_does_not_grow_with_what_is_decoded(start_daemon, disk, bombs):
    """512 MiB of zeros; they become a hole."""
    content = run(["sh", "-c", f"head -c {512 * MIB} /dev/zero | zstd -q -c --long=27"])
    path = bombs["zstd"].parent / "half.zst"
    path.write_bytes(content.stdout)
    daemon = start_daemon([disk], {"sources": {"allow_file": True}})
    daemon.client.ensure("a", f"file://{path}")
    ready = daemon.client.wait_ready("a", 60)
    assert ready.size == 512 * MIB and ready.real_size < MIB
    assert proc_status_kib(daemon.pid, "VmHWM") < scaled(320 * KIB)


def test_a_window_that_is_too_large(daemon, disk, origin):
    """zstd --ultra --long=31 wants 2 GiB of memory to decode: refused, or
    decoded within bounds."""
    content = run(["sh", "-c", f"head -c {192 * MIB} /dev/urandom |"
                   " zstd -q -1 -c --long=31 --no-progress"], timeout=120).stdout
    daemon.client.ensure("a", origin.serve("/a", Content(content)))
    image = daemon.client.wait_image(
        "a", lambda i: i.state in ("ready", "failed"), "ended", 60)
    assert proc_status_kib(daemon.pid, "VmHWM") < scaled(512 * KIB)
    if image.state == "failed":
        assert "zstd" in image.message
        assert not image.copies[0].HasField("next_attempt")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_broken_off_it_starts_over(daemon, origin, encoding):
    """Nobody can go on in the middle of a stream."""
    data = mixed()
    content = packed(encoding, data)
    url = origin.serve("/a", Content(content, reset_after=len(content) // 2),
                       Content(content))
    ready = ends_ready(daemon, url, data, sha512=images.sha512(data))
    assert [r.range for r in origin.requests] == ["", ""]
    assert ready.copies[0].origin == "download"


def test_killed_it_starts_over(daemon, disk, origin):
    data = mixed(16 * MIB)
    content = packed("zstd", data)
    url = origin.serve("/a", Content(content, stall_after=len(content) // 2),
                       Content(content))
    daemon.client.ensure("a", url, sha512=images.sha512(data))
    wait_until(lambda: daemon.client.get("a").copies[0].wire_bytes, "bytes")
    daemon.kill9()
    daemon.start()
    ready = daemon.client.wait_ready("a")
    assert ready.current_sha512 == images.sha512(data)
    assert not origin.requests[-1].range
    assert not disk.temp_files()


def test_one_connection_only(daemon, origin):
    """Also of a large file whose server takes ranges."""
    data = images.random_bytes(48 * MIB)
    url = origin.serve("/a", Content(packed("gzip", data), piece=1 * MIB, pause=0.02))
    ends_ready(daemon, url, data)
    assert origin.count("/a") == 1


def test_other_disks_and_the_data_port(start_daemon, disks, origin):
    """What is stored is an image like any other."""
    data = mixed()
    daemon = start_daemon([disks.directory("one"), disks.directory("two")])
    ready = ends_ready(daemon, origin.serve("/a", Content(packed("xz", data))), data)
    assert len(ready.copies) == 2 and origin.count("/a") == 1
    for copy in ready.copies:
        with open(copy.file_path, "rb") as file:
            assert file.read() == data
    got = run(["curl", "-sS", "--noproxy", "*", daemon.data_url("a", ready.spec.uuid)])
    assert got.stdout == data
