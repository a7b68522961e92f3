"""What is no disk image is refused with a message that shows what came."""

import bz2
import io
import lzma
import tarfile
import zipfile

import pytest

from lib import images
from lib.servers import Content, gzipped, html, json_error, xml_error


def tar():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("disk.raw")
        info.size = 4096
        archive.addfile(info, io.BytesIO(images.random_bytes(4096)))
    return out.getvalue()


def zipped():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("disk.raw", images.random_bytes(4096))
    return padded(out.getvalue())


def padded(data):
    return data + b"\0" * (-len(data) % 512)


WRONG = {
    "html": (html(), "HTML", "Log in"),
    "html as an image": (Content(html().data), "HTML", "Log in"),
    "html of odd length": (Content(html().data[:777]), "HTML", "Log in"),
    "json": (json_error(), "JSON", "no such image"),
    "xml": (xml_error(), "XML", "<Error>"),
    # Decoded, and then it is no image either.
    "html in gzip": (gzipped(html().data), "HTML", "Log in"),
    "json in xz": (Content(lzma.compress(json_error().data)), "JSON", "no such image"),
    "tar in gzip": (gzipped(tar()), "tar", ""),
    "bzip2": (Content(padded(bz2.compress(images.random_bytes(65536)))), "bzip2", ""),
    "tar": (Content(tar()), "tar", ""),
    "zip": (Content(zipped()), "zip", ""),
    "vmdk": (Content(b"KDMV" + (1).to_bytes(4, "little") + (3).to_bytes(4, "little")
                     + b"\0" * 65524), "VMDK", ""),
    "vhdx": (Content(b"vhdxfile" + b"\0" * 65528), "VHDX", ""),
}


@pytest.mark.parametrize("kind", WRONG)
def test_refused(start_daemon, origin, disk, kind):
    behaviour, word, quote = WRONG[kind]
    client = start_daemon([disk]).client
    uuid = client.ensure("a", origin.serve("/a", behaviour)).image.spec.uuid
    failed = client.wait_state("a", "failed")
    message = failed.copies[0].message
    assert word.lower() in message.lower() and quote in message, message
    assert not failed.copies[0].HasField("next_attempt")
    assert all(c >= " " for c in message), "control characters in a message"
    assert not disk.temp_files()
    assert not disk.ready_file("a", uuid).exists()
    assert origin.count("/a") == 1


def test_a_matching_checksum_makes_no_image_of_it(start_daemon, origin, disk):
    client = start_daemon([disk]).client
    page = html()
    client.ensure("a", origin.serve("/a", page), sha512=images.sha512(page.data))
    assert "HTML" in client.wait_state("a", "failed").message


def test_no_encoding_is_asked_for(start_daemon, origin, disk):
    """Nor is one that nobody knows guessed at."""
    url = origin.serve("/a", Content(images.random_bytes(65536),
                                     headers={"Content-Encoding": "br"}))
    client = start_daemon([disk]).client
    client.ensure("a", url)
    assert "'br'" in client.wait_state("a", "failed").message
    assert origin.requests[0].headers.get("accept-encoding", "identity") == "identity"


def test_a_wrong_content_type_alone_hurts_nobody(start_daemon, origin, disk):
    data = images.random_bytes(65536)
    client = start_daemon([disk]).client
    client.ensure("a", origin.serve("/a", Content(data, content_type="text/html")))
    assert client.wait_ready("a").format == "raw"


def test_hostile_text_stays_harmless(start_daemon, origin, disk):
    page = b"<html>\x1b]0;owned\x07\xff\xfe\r\n\t" + b"A" * 5000 + b"</html>"
    daemon = start_daemon([disk])
    daemon.client.ensure("a", origin.serve("/a", Content(page)))
    message = daemon.client.wait_state("a", "failed").message
    assert len(message) < 1000
    assert all(" " <= c <= "~" for c in message), ascii(message)
    assert "\x1b" not in daemon.log()
