"""docs/openapi.json, and calls whose every answer is held against it."""
import json
import os
import re
import urllib.parse

from api_client import skip

try:
    from jsonschema import Draft202012Validator, RefResolver
except ImportError:
    skip("python3-jsonschema is missing")

SOURCE = os.environ.get("FAULTLINE_SOURCE") or os.path.join(os.path.dirname(__file__), "..", "..")

TEMPLATE, FORK = "/v1/templates/{name}", "/v1/forks/{id}"
WAIT, READY, PREFETCH, HOT_LIST = FORK + "/wait", FORK + "/ready", FORK + "/prefetch", FORK + "/hot-list"
TRACE = FORK + "/trace"


class Document:
    def __init__(self):
        with open(os.path.join(SOURCE, "docs", "openapi.json"), encoding="utf-8") as f:
            self.root = json.load(f)
        self.resolver = RefResolver.from_schema(self.root)

    def deref(self, node):
        return self.resolver.resolve(node["$ref"])[1] if set(node) == {"$ref"} else node

    def operations(self):
        for path, item in self.root["paths"].items():
            for method, operation in item.items():
                if method != "parameters":
                    yield method.upper(), path, operation

    def operation(self, method, path):
        return self.root["paths"][path][method.lower()]

    def validate(self, schema, value):
        Draft202012Validator(schema, resolver=self.resolver).validate(value)

    def accepts(self, schema, value):
        return Draft202012Validator(schema, resolver=self.resolver).is_valid(value)

    def body_schema(self, operation):
        body = operation.get("requestBody")
        return body["content"]["application/json"]["schema"] if body else None

    def codes(self, response):
        """The error codes that a documented response lists."""
        schema = self.deref(response)["content"]["application/json"]["schema"]
        return schema["properties"]["error"]["properties"]["code"]["enum"]

    def errors(self, operation):
        return {(int(status), code) for status, response in operation["responses"].items() if int(status) >= 400
                for code in self.codes(response)}


class Checker:
    """Calls operations and holds every answer against the document; keeps what has been seen."""

    def __init__(self, document, server):
        self.document = document
        self.server = server
        self.seen = set()

    def answer_fits(self, response, answer):
        """RESPONSE: the part of the document that describes this status."""
        response = self.document.deref(response)
        content = response.get("content", {})
        if not content:
            assert answer.body == b"", answer.body
            return
        kind = answer.headers.get_content_type()
        assert kind in content, f"{kind} is not documented"
        if kind == "application/json":
            self.document.validate(content[kind]["schema"], answer.json)

    def call(self, method, path, expected, *, name=None, query="", body=None, connection=None):
        """EXPECTED: a status below 400, or an error code. Returns the answer."""
        target = re.sub(r"\{\w+\}", lambda _: urllib.parse.quote(name, safe=""), path) + query
        answer = self.server.call(method, target, body, connection)
        return self.accept(method, path, expected, answer, f"{method} {target} {str(body)[:200]}")

    def accept(self, method, path, expected, answer, request=""):
        """Checks an answer that came already."""
        where = f"{request or method + ' ' + path}: {answer.status} {answer.body[:300]}"
        responses = self.document.operation(method, path)["responses"]
        assert str(answer.status) in responses, f"{where}: this status is not documented"
        try:
            self.answer_fits(responses[str(answer.status)], answer)
        except Exception as e:
            raise AssertionError(f"{where}: not as documented: {e}") from e
        got = answer.json["error"]["code"] if answer.status >= 400 else answer.status
        assert got == expected, f"{where}: expected {expected}"
        self.seen.add((method, path, answer.status, got))
        return answer

    def get(self, path, expected=200, **more):
        return self.call("GET", path, expected, **more)

    def post(self, path, expected=200, **more):
        return self.call("POST", path, expected, **more)

    def delete(self, path, expected=204, **more):
        return self.call("DELETE", path, expected, **more)
