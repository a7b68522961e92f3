"""The API on TCP and on a unix socket, on connections that the daemon itself
accepts; ports in use."""

import os
import socket
import stat
import threading

import grpc

from lib.daemon import bim
from lib.deadline import scaled, wait_until
from lib.processes import open_files


def test_tcp_and_unix_socket(start_daemon, disk, connect):
    daemon = start_daemon([disk])
    for target in (daemon.address, f"unix:{daemon.socket}"):
        client = connect(target)
        assert client.version_get().api_version == 4
        assert [d.path for d in client.list_disks()] == [str(disk)]
    mode = stat.S_IMODE(os.stat(daemon.socket).st_mode)
    assert mode & 0o007 == 0, f"{mode:o}: everybody may call"


def test_several_listeners(start_daemon, connect):
    daemon = start_daemon(config={"api": {"listen": ["127.0.0.1:0", "127.0.0.1:0"]}})
    assert len(set(daemon.endpoint["api"])) == 2
    for address in daemon.endpoint["api"]:
        assert connect(address).version_get().api_version == 4


def test_a_stale_socket_file_is_replaced(start_daemon, connect):
    daemon = start_daemon()
    daemon.kill9()
    assert daemon.socket.exists()
    daemon.start()
    assert connect(f"unix:{daemon.socket}").version_get().api_version == 4


def test_many_connections_come_and_go(start_daemon, connect):
    daemon = start_daemon()
    daemon.client.version_get()
    before = len(open_files(daemon.pid))
    clients = [connect(daemon.address) for _ in range(40)]
    errors = []

    def call(client):
        try:
            assert client.version_get().api_version == 4
        except (AssertionError, grpc.RpcError) as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(c,)) for c in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=scaled(30))
    assert not errors
    assert len(open_files(daemon.pid)) >= before + 40
    for client in clients:
        client.close()
    wait_until(lambda: len(open_files(daemon.pid)) <= before + 2,
               "the connections' descriptors closed")


def test_garbage_on_the_api_port_hurts_nobody(start_daemon):
    daemon = start_daemon()
    host, port = daemon.address.rsplit(":", 1)
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 4096, b"\xff" * 65536, b""):
        with socket.create_connection((host, int(port)), 5) as sock:
            try:
                sock.sendall(garbage)
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
    assert daemon.client.version_get().api_version == 4


def refused_start(daemon):
    daemon.spawn()
    code = daemon.wait_exit()
    assert code not in (0, -6, -11), daemon.log()
    assert not (daemon.state_dir / "endpoint.json").exists()
    return daemon.log()


def test_an_api_port_in_use(start_daemon):
    first = start_daemon()
    second = start_daemon(config={"api": {"listen": [first.address]}}, run=False)
    log = refused_start(second)
    assert first.address in log and "in use" in log
    assert first.client.version_get().api_version == 4


def test_a_data_port_in_use(start_daemon):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        log = refused_start(
            start_daemon(config={"api": {"data_listen": address}}, run=False))
        assert address in log and "in use" in log


def test_a_socket_in_use(start_daemon, connect):
    first = start_daemon()
    second = start_daemon(config={"api": {"socket": f"unix:{first.socket}"}},
                          run=False)
    log = refused_start(second)
    assert str(first.socket) in log and "in use" in log
    assert connect(f"unix:{first.socket}").version_get().api_version == 4


def test_a_state_directory_in_use(start_daemon):
    first = start_daemon()
    second = start_daemon(config={"node": {"state_dir": first.state_dir}}, run=False)
    second.spawn()
    assert second.wait_exit() not in (0, -6, -11)
    assert str(first.state_dir) in second.log()
    assert first.client.version_get().api_version == 4


def test_a_port_in_use_can_be_had_later(start_daemon):
    first = start_daemon()
    address = first.address
    first.stop()
    second = start_daemon(config={"api": {"listen": [address]}})
    assert second.address == address
    assert bim("version", "--address", address).returncode == 0
