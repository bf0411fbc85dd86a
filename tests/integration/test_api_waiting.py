#!/usr/bin/python3
"""Clients that wait, that are slow, that go away, and a server that stops meanwhile."""
import json
import os
import resource
import signal
import socket
import subprocess
import threading

from api_client import DEADLINE_S, PAGE, PAGES, Server, make_image, wait_for
from fake_vmm import FakeVmm

WAITERS = 1000
LOST = 5
CONNECT = ("42", "203")  # connect(2), on x86_64 and aarch64
REQUESTS_MAX = 4096  # as in src/control/control.c


def create_fork(server, name):
    answer = server.call("POST", "/v1/forks", {"template": "base", "id": name})
    assert answer.status == 201, answer.body
    return answer.json


def check_many_waiters(server):
    fork = create_fork(server, "many")
    waiters = [server.start_wait("many", "for=connected&timeout_s=120") for _ in range(WAITERS)]
    wait_for(lambda: server.connection_threads(asleep=True) == WAITERS)
    # While all of them wait, others are answered.
    assert server.call("GET", "/v1/forks/many").json["state"] == "waiting"
    with FakeVmm(fork["socket"], PAGES * PAGE):
        for waiter in waiters:
            assert waiter.getresponse().status == 200
            waiter.close()
    wait_for(lambda: server.connection_threads() == 0)


def check_too_many_waiters(server):
    """So many that no more may wait: the others are told so, and there is room left for who ends the waits."""
    create_fork(server, "busy")
    waiters = [server.start_wait("busy", "for=connected&timeout_s=300") for _ in range(REQUESTS_MAX)]
    wait_for(lambda: server.connection_threads(asleep=True) == REQUESTS_MAX)
    refused = server.call("GET", "/v1/forks/busy/wait?for=connected")
    assert (refused.status, refused.json["error"]["code"]) == (503, "busy"), refused.body
    assert server.call("GET", "/v1/forks/busy").status == 200
    assert server.call("DELETE", "/v1/forks/busy").status == 204
    for waiter in waiters:
        assert waiter.getresponse().status == 410
        waiter.close()
    wait_for(lambda: server.connection_threads() == 0)


def check_lost_clients(server):
    """Who waits and goes away leaves no thread behind, long before the wait's own end."""
    create_fork(server, "lost")
    clients = [server.start_wait("lost", "for=connected&timeout_s=86400") for _ in range(LOST)]
    wait_for(lambda: server.connection_threads(asleep=True) == LOST)
    # One has merely nothing more to say, and gets its answer.
    clients[0].sock.shutdown(socket.SHUT_WR)
    for client in clients[1:]:
        client.close()
    wait_for(lambda: server.connection_threads() == 1)
    assert server.call("DELETE", "/v1/forks/lost").status == 204
    assert clients[0].getresponse().status == 410


def check_connection_is_reused(server):
    connection = server.connection()
    for method, target, body, status in [("GET", "/v1/server", None, 200), ("GET", "/v1/forks?x=1", None, 400),
                                         ("POST", "/v1/forks", b"{", 400), ("DELETE", "/v1/forks/none", None, 204),
                                         ("GET", "/v1/server", None, 200)]:
        assert server.call(method, target, body, connection).status == status
        first = connection.sock if target == "/v1/server" and status == 200 else first
        assert connection.sock is first
    connection.close()


def check_full_queue(server):
    """A command waits where the socket's queue is full, and is served when there is room again."""
    run_dir = os.path.join(server.dir, "full")
    os.mkdir(run_dir)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.join(run_dir, "control.sock"))
        listener.listen(0)
        filler = socket.socket(socket.AF_UNIX)
        filler.connect(listener.getsockname())
        command = subprocess.Popen([server.binary, "fork", "list", "--run-dir", run_dir, "--json"],
                                   stdout=subprocess.PIPE)
        wait_for(lambda: system_call(command.pid) in CONNECT)
        listener.settimeout(DEADLINE_S)
        listener.accept()[0].close()
        filler.close()
        request = b""
        while not request:
            # It may first connect without a word, only to see whether there is room.
            with listener.accept()[0] as connection:
                connection.settimeout(DEADLINE_S)
                request = connection.recv(4096)
                if request:
                    assert request.startswith(b"GET /v1/forks HTTP/1.1\r\n"), request
                    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"forks":[]}\n')
        assert command.wait(DEADLINE_S) == 0
        assert command.stdout.read() == b'{"forks":[]}\n'
        command.stdout.close()


def system_call(pid):
    with open(f"/proc/{pid}/syscall", encoding="ascii") as f:
        return f.read().split()[0]


class SlowClient:
    """Sends START, and then DRIP again and again; it is to be hung up on without an answer."""

    def __init__(self, server, start, drip=b""):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(DEADLINE_S)
        self.socket.connect(server.socket)
        self.socket.sendall(start)
        self.drip = drip
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.drip_on)
        self.thread.start()

    def drip_on(self):
        try:
            while self.drip and not self.ended.wait(0.2):
                self.socket.sendall(self.drip)
        except BrokenPipeError:
            pass

    def check(self):
        try:
            assert self.socket.recv(4096) == b""
        except ConnectionResetError:
            pass
        finally:
            self.ended.set()
            self.thread.join()
            self.socket.close()


def open_slow_clients(server):
    body = b"POST /v1/forks HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{"
    return [SlowClient(server, b""), SlowClient(server, b"GET /v1/server HTTP/1.1\r\nHo"),
            SlowClient(server, b"GET /v1/server HTTP/1.1\r\nHost: ", b"x"), SlowClient(server, body),
            SlowClient(server, body, b" ")]


def check_stop(server):
    """A wait is answered while the server stops, and clients that hold their requests back don't hold it up."""
    create_fork(server, "last")
    silent = SlowClient(server, b"GET /v1/server HTTP/1.1\r\nHo")
    waiter = server.start_wait("last", "for=ready&timeout_s=120")
    wait_for(lambda: server.connection_threads(asleep=True) == 1)
    server.process.send_signal(signal.SIGTERM)
    answer = waiter.getresponse()
    code = json.load(answer)["error"]["code"]
    # The fork goes with the server; whichever the wait notices first.
    assert (answer.status, code) in [(503, "shutting_down"), (410, "fork_removed")], code
    server.process.wait(DEADLINE_S)
    assert not os.path.exists(server.socket)
    silent.check()


def main():
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    with Server() as server:
        image = os.path.join(server.dir, "image.mem")
        make_image(image)
        assert server.call("POST", "/v1/templates", {"name": "base", "memory": image}).status == 201
        check_connection_is_reused(server)
        wait_for(lambda: server.connection_threads() == 0)
        check_full_queue(server)
        check_many_waiters(server)
        if files > 2 * REQUESTS_MAX:
            check_too_many_waiters(server)
        else:
            print(f"no more than {files} open files: not tried how many may wait")
        check_lost_clients(server)
        slow = open_slow_clients(server)
        for client in slow:
            client.check()
        check_stop(server)


if __name__ == "__main__":
    main()
