#!/usr/bin/python3
"""Clients that wait, that are slow, that go away, and a server that stops meanwhile."""
import json
import os
import resource
import signal
import socket
import threading

from api_client import DEADLINE_S, PAGE, PAGES, Server, make_image, wait_for
from fake_vmm import FakeVmm

WAITERS = 1000
LOST = 5


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
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with Server() as server:
        image = os.path.join(server.dir, "image.mem")
        make_image(image)
        assert server.call("POST", "/v1/templates", {"name": "base", "memory": image}).status == 201
        check_connection_is_reused(server)
        wait_for(lambda: server.connection_threads() == 0)
        check_many_waiters(server)
        check_lost_clients(server)
        slow = open_slow_clients(server)
        for client in slow:
            client.check()
        check_stop(server)


if __name__ == "__main__":
    main()
