#!/usr/bin/python3
"""Holds docs/openapi.json against a running server: every operation, status and error code, both ways."""
import json
import os
import re
import signal
import struct
import threading
import time

from api_client import DEADLINE_S, PAGE, PAGES, Answer, Server, hpl1, make_image, wait_for, write_file
from api_document import FORK, HOT_LIST, PREFETCH, READY, SOURCE, TEMPLATE, TRACE, WAIT, Checker, Document
from fake_vmm import FakeVmm

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
# What isn't brought about here: bugs, no memory, failing disks, a limit of 100,000 forks; test_api_waiting.py has the last two.
NOT_PROVOKED = {"internal", "no_memory", "io_error", "too_many_forks", "busy", "shutting_down"}


# ---- the document and the server have the same routes, parameters and error codes ----

def check_routes(document, server):
    listed = server.call("GET", "/v1").json
    served = {(r["method"], r["path"], tuple(sorted(r["query"]))) for r in listed["routes"]}
    documented = {(method, path, tuple(sorted(p["name"] for p in operation.get("parameters", []))))
                  for method, path, operation in document.operations()}
    assert served == documented, f"only served: {served - documented}; only documented: {documented - served}"

    table = {(e["status"], e["code"]) for e in listed["errors"]}
    in_document = set()
    for _, _, operation in document.operations():
        in_document |= document.errors(operation)
    for response in ("RouteUnknown", "MethodNotAllowed"):
        codes = document.codes(document.root["components"]["responses"][response])
        in_document |= {(s, c) for s, c in table if c in codes}
    assert table == in_document, f"only in the server: {table - in_document}; only documented: {in_document - table}"
    all_codes = document.root["components"]["schemas"]["Error"]["properties"]["error"]["properties"]["code"]["enum"]
    assert sorted(c for _, c in table) == all_codes


def check_header_codes(server):
    """The codes that the server object promises in its header are all in the API's table."""
    with open(os.path.join(SOURCE, "src", "serve", "server.h"), encoding="utf-8") as f:
        sentences = re.findall(r"Codes?: ([^/]*?)\.", f.read())
    codes = {code for s in sentences for code in re.findall(r"\b[a-z]+(?:_[a-z]+)+\b|\btimeout\b", s)}
    table = {e["code"] for e in server.call("GET", "/v1").json["errors"]}
    assert len(codes) > 15 and codes <= table, codes - table


def check_closed_responses(document):
    """Objects in answers are closed and complete, or the checks below would let a renamed member pass."""
    for name, schema in document.root["components"]["schemas"].items():
        if schema.get("type") == "object":
            assert schema["additionalProperties"] is False, name
            assert name.endswith("Spec") or set(schema["required"]) == set(schema["properties"]), name


def check_methods(document, server):
    response = document.root["components"]["responses"]["MethodNotAllowed"]
    for path, item in document.root["paths"].items():
        allowed = {m.upper() for m in item if m != "parameters"}
        target = re.sub(r"\{\w+\}", "x", path)
        for method in METHODS:
            if method in allowed:
                continue
            answer = server.call(method, target)
            assert answer.status == 405, f"{method} {target}: {answer.status}"
            document.validate(response["content"]["application/json"]["schema"], answer.json)
            assert {m.strip() for m in answer.headers["Allow"].split(",")} == allowed
        assert server.call("HEAD", target).status == 405


def check_unknown_paths(document, server):
    response = document.root["components"]["responses"]["RouteUnknown"]
    for target in ["/", "/v1/", "/v2", "/V1", "/v1/fork", "/v1/forks/", "/v1//forks", "/v1/forks/a/b", "/v1/forks//wait",
                   "/v1/forks/a/wait/", "/v1/templates/a/wait", "/v1/server/x", "/v1%2Fserver"]:
        answer = server.call("GET", target)
        assert answer.status == 404, f"{target}: {answer.status}"
        document.validate(response["content"]["application/json"]["schema"], answer.json)


# ---- what every operation refuses ----

def check_common_refusals(document, checker):
    for method, path, operation in document.operations():
        def refused(code, query="", body=None, method=method, path=path):
            checker.call(method, path, code, name="base", query=query, body=body)

        refused("bad_uri", "?%zz=1")
        refused("bad_uri", "?a=%00")
        refused("bad_uri", "?a=%ff")
        refused("bad_query", "?no_such=1")
        refused("bad_query", "?no_such")
        refused("body_too_large", body=b"[" * ((1 << 20) + 1))
        for parameter in operation.get("parameters", []):
            refused("bad_query", f"?{parameter['name']}=nonsense")
            refused("bad_query", f"?{parameter['name']}=")
            refused("bad_query", f"?{parameter['name']}=1&{parameter['name']}=1")
        if not document.body_schema(operation):
            refused("unexpected_body", "?for=connected" if path == WAIT else "", b"{}")
    for name in ["%", "%4", "%zz", "%00", "%ff", "%ed%a0%80"]:
        answer = checker.server.call("GET", f"/v1/forks/{name}")
        assert answer.status == 400 and answer.json["error"]["code"] == "bad_uri", name


def wrong_values(schema):
    """Values of types that the member can't have."""
    kind = schema.get("type") or "string"
    values = [None, [], {}]
    values += {"string": [1.5, 1, True, ""], "boolean": [1.5, 0, "true"], "integer": [1.5, "1", True, schema.get("minimum", 0) - 1, schema.get("maximum", 2**62) + 1, 2**62],
               "number": ["1", True, -0.5, 2**62]}[kind]
    return values


def check_bodies(document, checker, examples):
    """EXAMPLES: a good body for each operation that has one. Server and schema must refuse the same."""
    for method, path, operation in document.operations():
        reference = document.body_schema(operation)
        if not reference:
            continue
        schema, good = document.deref(reference), examples[method, path]
        assert document.accepts(schema, good), good

        def refused(codes, body, method=method, path=path, schema=schema):
            if not isinstance(body, bytes):
                assert not document.accepts(schema, body), f"the schema takes {body}"
            answer = checker.server.call(method, path.replace("{id}", "base"), body)
            code = answer.json["error"]["code"]
            assert code in codes, f"{method} {path} {body}: {code}, expected {codes}"
            checker.call(method, path, code, name="base", body=body)

        refused(["missing_body"], b"")
        for text in [b" ", b"{", b'{"a":1}}', b"{} x", b"{,}", b'{"a":"\xff"}', b'{"a":"\\u0000"}', b"\x00", b"nul", b"1",
                     b'{"a":1,"a":1}', b"[" * 100000, b'{"a":' * 50000 + b"1" + b"}" * 50000]:
            refused(["bad_json"], text)
        refused(["bad_body"], [good])
        refused(["unknown_member"], dict(good, no_such=1))
        refused(["unknown_member"], dict(good, **{"näme": 1}))
        for member in schema["required"]:
            refused(["missing_member"], {k: v for k, v in good.items() if k != member})
        for member, member_schema in schema["properties"].items():
            member_schema = document.deref(member_schema)
            for value in wrong_values(member_schema):
                refused(["bad_member", "bad_path"], dict(good, **{member: value}))
            if member_schema.get("pattern") == "^/":
                refused(["bad_path"], dict(good, **{member: "relative/path"}))
                refused(["bad_path"], dict(good, **{member: "/" + "p" * 4096}))


# ---- templates and forks ----

def check_templates(checker, image, hot_list):
    spec = {"name": "base", "memory": image}
    added = checker.post("/v1/templates", 201, body=spec).json
    assert added["memory"] == image and added["memory_size"] == PAGES * PAGE and added["forks_live"] == 0
    # The image is looked through for zeros in the meantime.
    while (shown := checker.get(TEMPLATE, name="base").json)["zero_map"]["state"] != "ready":
        assert shown["zero_map"]["state"] == "building", shown
        time.sleep(0.01)
    assert shown == dict(added, zero_map=shown["zero_map"])
    checker.post("/v1/templates", "template_exists", body=spec)
    for name in [".a", "-a", "a/b", "a b", "ä", "x" * 65]:
        checker.post("/v1/templates", "bad_name", body=dict(spec, name=name))
    other = dict(spec, name="other")
    checker.post("/v1/templates", "bad_memory", body=dict(other, memory="/no/such/file"))
    checker.post("/v1/templates", "bad_memory", body=dict(other, memory=checker.server.dir))
    checker.post("/v1/templates", "bad_state", body=dict(other, state="/no/such/file"))
    checker.post("/v1/templates", "bad_hot_list", body=dict(other, hot_list=image + "/no-directory"))
    checker.post("/v1/templates", "bad_inject", body=dict(other, inject="nonsense"))
    full = dict(other, state=image, hot_list=hot_list, inject="delay=1ms")
    added = checker.post("/v1/templates", 201, body=full).json
    assert {k: added[k] for k in full} == full
    assert [t["name"] for t in checker.get("/v1/templates").json["templates"]] == ["base", "other"]
    checker.get(TEMPLATE, "template_unknown", name="none")
    checker.get(TEMPLATE, "template_unknown", name="no/ne")
    checker.delete(TEMPLATE, name="other")
    checker.delete(TEMPLATE, "template_unknown", name="other")


def check_fork_creation(checker, image):
    spec = {"template": "base"}
    server = checker.server
    made_up = checker.post("/v1/forks", 201, body=spec).json
    assert made_up["state"] == "waiting" and made_up["socket"] == f"{server.run_dir}/{made_up['id']}.uffd"
    assert made_up["pid"] is None and made_up["regions"] == [] and not made_up["record"]
    checker.post("/v1/forks", "fork_exists", body=dict(spec, id=made_up["id"]))
    checker.post("/v1/forks", "bad_name", body=dict(spec, id="../x"))
    checker.post("/v1/forks", "template_unknown", body={"template": "none"})
    checker.post("/v1/forks", "bad_hot_list", body=dict(spec, hot_list=image))
    checker.post("/v1/forks", "bad_prefetch", body=dict(spec, prefetch="eager"))
    checker.post("/v1/forks", "bad_dir", body=dict(spec, dir="/no/such/dir"))
    checker.post("/v1/forks", "bad_member", body=dict(spec, prefetch="trickle"))
    checker.post("/v1/forks", "bad_prefetch", body=dict(spec, prefetch="stream"))
    for window in [{"window_timeout_s": 0}, {"window_timeout_s": 86401}, {"settle_s": -1}, {"settle_s": "2"}, {"settle_s": 1e300}]:
        checker.post("/v1/forks", "bad_member", body=dict(spec, **window))
    checker.delete(TEMPLATE, "template_in_use", name="base")
    checker.delete(FORK, name=made_up["id"])
    checker.delete(FORK, name=made_up["id"])
    checker.delete(FORK, name="never/was", query="?force=true")
    checker.get(FORK, "fork_unknown", name=made_up["id"])


def check_prefetch_default(checker, hot_list, image):
    """Without "prefetch": a list that the fork names is used; its template's only if the fork doesn't record."""
    listed = {"name": "listed", "memory": image, "hot_list": hot_list}
    checker.post("/v1/templates", 201, body=listed)
    for body, mode in [({}, "eager"), ({"record": True}, "off"), ({"record": True, "hot_list": hot_list}, "eager"),
                       ({"prefetch": "off"}, "off"), ({"record": True, "prefetch": "eager"}, "eager")]:
        fork = checker.post("/v1/forks", 201, body=dict(body, template="listed", id="d")).json
        assert fork["prefetch"] == mode, (body, fork)
        checker.delete(FORK, name="d")
    fork = checker.post("/v1/forks", 201, body={"template": "base", "id": "d"}).json
    assert fork["prefetch"] == "off"
    checker.delete(FORK, name="d")
    checker.delete(TEMPLATE, name="listed")


def check_changed_template(checker):
    path = write_file(checker.server, "changing.mem", bytes(PAGE))
    checker.post("/v1/templates", 201, body={"name": "changing", "memory": path})
    # Whatever the server holds on the image, it lets writers through: the kernel's own patience with a lease is 45 s.
    started = time.monotonic()
    os.truncate(path, 0)
    assert time.monotonic() - started < 20, "a writer to the image was held up"
    checker.post("/v1/forks", "template_changed", body={"template": "changing"})
    checker.delete(TEMPLATE, name="changing")


def check_recorded_fork(checker, hot_list):
    server = checker.server
    fork = checker.post("/v1/forks", 201, body={"template": "base", "id": "rec", "record": True, "uid": 0, "dir": server.dir,
                                                "window_timeout_s": 3600, "settle_s": 0.5}).json
    checker.get(WAIT, "timeout", name="rec", query="?for=connected&timeout_s=0")
    checker.post(READY, "not_connected", name="rec")
    checker.post(PREFETCH, "not_connected", name="rec", body={"hot_list": hot_list})
    with FakeVmm(fork["socket"], PAGES * PAGE) as vmm:
        connected = checker.get(WAIT, name="rec", query="?for=connected").json
        assert connected["pid"] == vmm.pid and connected["handshake"] == "firecracker"
        assert [(r["size"], r["offset"], r["page_size"]) for r in connected["regions"]] == [(PAGES * PAGE, 0, PAGE)]
        for page in (5, 2, 9):
            assert vmm.read(page * PAGE) == struct.pack("<Q", page + 1)
        vmm.drop(9 * PAGE, PAGE)
        assert vmm.read(9 * PAGE) == bytes(8)
        checker.get(WAIT, "timeout", name="rec", query="?for=ready&timeout_s=0.01")
        checker.get(WAIT, "not_prefetching", name="rec", query="?for=prefetched&timeout_s=5")
        ready = checker.post(READY, name="rec").json
        assert ready["state"] == "ready" and ready["ready_ms"] >= ready["connected_ms"]
        assert checker.post(READY, name="rec").json["ready_ms"] == ready["ready_ms"]
        checker.get(WAIT, name="rec", query="?for=ready")
        shown = checker.get(FORK, name="rec").json
        # The zero page may come after the removal in one fault or two, but each page was faulted once before.
        assert shown["copied_pages"] == 3 and shown["removed_pages"] == 1 and shown["faults"] >= 4, shown
        assert shown["recorded_pages"] >= 3
        checker.delete(FORK, "fork_live", name="rec")
    checker.get(WAIT, name="rec", query="?for=gone")
    return checker.get(FORK, name="rec").json


def check_hot_list(checker):
    raw = checker.get(HOT_LIST, name="rec", query="?from=loop&format=hpl1")
    assert raw.body == hpl1([(0, 2 * PAGE), (0, 5 * PAGE), (0, 9 * PAGE)])
    best = checker.get(HOT_LIST, name="rec")
    assert best.body[:4] == b"HPL2" and best.headers["Faultline-Recorded-By"] == "loop"
    assert "does not observe" in best.headers["Faultline-Recorded-Why"]
    assert checker.get(HOT_LIST, name="rec", query="?format=hpl2").body == best.body
    rows = checker.get(HOT_LIST, name="rec", query="?format=csv").body.decode().splitlines()
    assert rows[0].split(",")[:4] == ["region", "offset", "first_touch_ns", "seen"]
    assert [tuple(map(int, r.split(",")[:2])) for r in rows[1:4]] == [(0, 5 * PAGE), (0, 2 * PAGE), (0, 9 * PAGE)]
    checker.get(HOT_LIST, name="rec", query="?from=best&format=json")
    checker.get(HOT_LIST, "not_observed", name="rec", query="?from=kernel")
    checker.get(TRACE, "not_observed", name="rec")
    checker.get(TRACE, "fork_unknown", name="none")
    checker.get(HOT_LIST, "fork_unknown", name="none")
    return raw.body


def check_gone_fork(checker, hot_list):
    """VMMs that end before what was waited for: at a fork that is never ready."""
    fork = checker.post("/v1/forks", 201, body={"template": "base", "id": "short"}).json
    with FakeVmm(fork["socket"], PAGES * PAGE):
        checker.get(WAIT, name="short", query="?for=connected")
    checker.get(WAIT, name="short", query="?for=gone")
    checker.get(WAIT, "fork_gone", name="short", query="?for=ready")
    checker.post(READY, "fork_gone", name="short")
    checker.post(PREFETCH, "fork_gone", name="short", body={"hot_list": hot_list})
    checker.get(HOT_LIST, "not_recorded", name="short")
    checker.delete(FORK, name="short")


def check_prefetched_fork(checker, hot_list):
    server = checker.server
    beyond = write_file(server, "beyond.hpl", hpl1([(0, 0), (0, PAGES * PAGE)]))
    region = write_file(server, "region.hpl", hpl1([(3, 0)]))
    garbage = write_file(server, "list.txt", b"HPL1\xff")
    more = write_file(server, "more.hpl", hpl1([(0, 0), (0, PAGE), (0, 2 * PAGE)]))
    fork = checker.post("/v1/forks", 201, body={"template": "base", "id": "pre", "prefetch": "eager",
                                                "hot_list": hot_list}).json
    assert fork["prefetch_state"] == "pending"
    with FakeVmm(fork["socket"], PAGES * PAGE) as vmm:
        done = checker.get(WAIT, name="pre", query="?for=prefetched").json
        assert done["prefetched_pages"] == 3 and done["prefetch_state"] == "done" and done["faults"] == 0
        checker.post(PREFETCH, "bad_offset", name="pre", body={"hot_list": beyond})
        checker.post(PREFETCH, "bad_region", name="pre", body={"hot_list": region})
        checker.post(PREFETCH, "bad_hot_list", name="pre", body={"hot_list": garbage})
        again = checker.post(PREFETCH, name="pre", body={"hot_list": more}).json
        assert again["prefetched_pages"] == 5 and again["prefetch_present_pages"] == 1, again
        assert checker.post(PREFETCH, name="pre", body={"hot_list": "/no/such/list"}).json["prefetch_state"] == "done"
        for page in (0, 1, 2, 5, 9):
            assert vmm.read(page * PAGE) == struct.pack("<Q", page + 1)
        assert checker.get(FORK, name="pre").json["faults"] == 0
        checker.post(READY, "fork_unknown", name="none")
        checker.post(PREFETCH, "fork_unknown", name="none", body={"hot_list": more})
        checker.get(WAIT, "fork_unknown", name="none", query="?for=gone")
        checker.delete(FORK, name="pre", query="?force=true")
        assert vmm.process.wait(DEADLINE_S) == -signal.SIGKILL


def check_streamed_fork(checker, hot_list):
    fork = checker.post("/v1/forks", 201, body={"template": "base", "id": "flow", "prefetch": "stream",
                                                "hot_list": hot_list}).json
    assert fork["prefetch"] == "stream" and fork["prefetch_state"] == "pending" and fork["stream"] is None
    with FakeVmm(fork["socket"], PAGES * PAGE) as vmm:
        done = checker.get(WAIT, name="flow", query="?for=prefetched").json
        stream = done["stream"]
        assert done["prefetch_state"] == "done" and done["prefetched_pages"] == 3
        assert stream["planned"] == stream["prefetched"] == stream["place"] == stream["lead"] == 3, stream
        assert vmm.read(7 * PAGE) == struct.pack("<Q", 8)
        assert checker.get(FORK, name="flow").json["stream"]["missing"] == 1
        checker.delete(FORK, name="flow", query="?force=true")
        assert vmm.process.wait(DEADLINE_S) == -signal.SIGKILL


def check_failing_prefetch(checker, image, hot_list):
    """Page 5 of the image can't be read, and every read takes a while."""
    server = checker.server
    checker.post("/v1/templates", 201, body={"name": "bad", "memory": image, "inject": "error=0x5000+0x1000"})
    checker.post("/v1/templates", 201, body={"name": "slow", "memory": image, "inject": "delay=500ms"})
    fork = checker.post("/v1/forks", 201, body={"template": "bad", "id": "bad", "prefetch": "eager",
                                                "hot_list": hot_list}).json
    with FakeVmm(fork["socket"], PAGES * PAGE):
        checker.get(WAIT, "prefetch_failed", name="bad", query="?for=prefetched")
        checker.post(PREFETCH, "prefetch_failed", name="bad", body={"hot_list": hot_list})
    fork = checker.post("/v1/forks", 201, body={"template": "slow", "id": "slow"}).json
    with FakeVmm(fork["socket"], PAGES * PAGE):
        checker.get(WAIT, name="slow", query="?for=connected")
        answers = []

        def prefetch():
            answers.append(server.call("POST", "/v1/forks/slow/prefetch", {"hot_list": hot_list}))

        # Of two that start together, one finds the other at work.
        threads = [threading.Thread(target=prefetch) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
        done, busy = sorted(answers, key=lambda answer: answer.status)
        checker.accept("POST", PREFETCH, 200, done)
        checker.accept("POST", PREFETCH, "prefetch_busy", busy)
    for name in ("bad", "slow"):
        checker.get(WAIT, name=name, query="?for=gone")
        checker.delete(FORK, name=name)
        checker.delete(TEMPLATE, name=name)


def check_removed_while_waited_for(checker):
    server = checker.server
    checker.post("/v1/forks", 201, body={"template": "base", "id": "vanish"})
    waiter = server.start_wait("vanish", "for=connected&timeout_s=120")
    # The fork must stay until the wait is under way.
    wait_for(lambda: server.connection_threads(asleep=True) == 1)
    checker.delete(FORK, name="vanish")
    checker.accept("GET", WAIT, "fork_removed", Answer(waiter.getresponse()))


# ---- with a kernel that can be observed ----

def read_lines(document, answer):
    """The events of a trace, each held against the document."""
    schema = document.operation("GET", TRACE)["responses"]["200"]["content"]["application/x-ndjson"]["schema"]
    while line := answer.readline():
        event = json.loads(line)
        document.validate(schema, event)
        yield event


def check_trace(document, checker):
    """Opened before the VMM connects, it has every touch."""
    server = checker.server
    fork = checker.post("/v1/forks", 201, body={"template": "base", "id": "seen", "record": True}).json
    connection = server.connection()
    connection.request("GET", "/v1/forks/seen/trace")
    answer = connection.getresponse()
    assert answer.status == 200 and answer.headers.get_content_type() == "application/x-ndjson"
    checker.seen.add(("GET", TRACE, 200, 200))
    events = read_lines(document, answer)
    assert next(events)["event"] == "begin"
    with FakeVmm(fork["socket"], PAGES * PAGE) as vmm:
        checker.get(WAIT, name="seen", query="?for=connected")
        for page in (5, 2, 9):
            assert vmm.read(page * PAGE) == struct.pack("<Q", page + 1)
        for page in (5, 2, 9):
            touch = next(events)
            assert (touch["event"], touch["region"], touch["offset"]) == ("touch", 0, page * PAGE), touch
            phases = [touch[f"{phase}_us"] for phase in ("queue", "source", "copy", "wake")]
            assert touch["demand"] and abs(sum(phases) - touch["total_us"]) < 0.01, touch
    assert [event["event"] for event in events] == ["end"]
    checker.get(WAIT, name="seen", query="?for=gone")
    checker.get(TRACE, "fork_gone", name="seen")


def check_observed(document, checker, tier):
    check_trace(document, checker)
    shown = checker.get(FORK, name="seen").json
    observed = shown["observed"]
    assert shown["observe_tier"] == tier and observed["events_lost"] == 0 and observed["faults"] == 3, observed
    assert observed["latency"]["total"]["count"] == 3 and observed["latency"]["total"]["max_us"] > 0
    for source in ("best", "kernel"):
        rows = checker.get(HOT_LIST, name="seen", query=f"?format=csv&from={source}")
        assert rows.headers["Faultline-Recorded-By"] == "kernel", rows.headers
        pages = [int(row.split(",")[1]) // PAGE for row in rows.body.decode().splitlines()[1:]]
        assert pages == [5, 2, 9], pages


def observe(document, seen):
    """Returns what can't be brought about where the kernel can't be observed."""
    with Server("--observe", "auto") as server:
        checker = Checker(document, server)
        checker.seen = seen
        tier = checker.get("/v1/server").json["observe_tier"]
        if tier == "none":
            print("this kernel can't be observed: no trace is tried")
            return {("GET", TRACE, 200, 200), ("GET", TRACE, 409, "fork_gone")}
        image = os.path.join(server.dir, "image.mem")
        make_image(image)
        checker.post("/v1/templates", 201, body={"name": "base", "memory": image})
        check_observed(document, checker, tier)
    return set()


def check_coverage(document, checker, impossible):
    """Every documented success and error code was seen, but for those that can't be brought about."""
    seen = {(m, p, s, c) for m, p, s, c in checker.seen}
    missing = []
    for method, path, operation in document.operations():
        wanted = {(int(s), int(s)) for s in operation["responses"] if int(s) < 400} | document.errors(operation)
        missing += [(method, path, s, c) for s, c in sorted(wanted, key=str)
                    if (method, path, s, c) not in seen | impossible and c not in NOT_PROVOKED]
    assert not missing, "never seen:\n" + "\n".join(map(str, missing))


def main():
    document = Document()
    check_closed_responses(document)
    with Server("--observe", "off") as server:
        checker = Checker(document, server)
        image = os.path.join(server.dir, "image.mem")
        make_image(image)
        hot_list = write_file(server, "hot.hpl", hpl1([(0, 2 * PAGE), (0, 5 * PAGE), (0, 9 * PAGE)]))

        check_routes(document, server)
        check_header_codes(server)
        check_methods(document, server)
        check_unknown_paths(document, server)
        info = checker.get("/v1/server").json
        assert info["run_dir"] == server.run_dir and info["pid"] == server.process.pid and info["pagers"] >= 1
        checker.get("/v1")
        check_common_refusals(document, checker)
        assert checker.get("/v1/templates").json == {"templates": []}
        assert checker.get("/v1/forks").json == {"forks": []}
        check_bodies(document, checker, {
            ("POST", "/v1/templates"): {"name": "base", "memory": image},
            ("POST", "/v1/forks"): {"template": "base"},
            ("POST", PREFETCH): {"hot_list": hot_list},
        })
        check_templates(checker, image, hot_list)
        check_fork_creation(checker, image)
        check_prefetch_default(checker, hot_list, image)
        check_changed_template(checker)
        gone = check_recorded_fork(checker, hot_list)
        assert gone["state"] == "gone" and gone["gone_ms"] >= gone["ready_ms"]
        assert [f["id"] for f in checker.get("/v1/forks").json["forks"]] == ["rec"]
        check_hot_list(checker)
        check_gone_fork(checker, hot_list)
        check_prefetched_fork(checker, hot_list)
        check_streamed_fork(checker, hot_list)
        check_failing_prefetch(checker, image, hot_list)
        check_removed_while_waited_for(checker)
    impossible = observe(document, checker.seen)
    check_coverage(document, checker, impossible)
    print(f"{len(checker.seen)} kinds of answers as documented")


if __name__ == "__main__":
    main()
