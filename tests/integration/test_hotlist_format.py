#!/usr/bin/python3
"""HPL2 as docs/hotlist-format.md has it, read and written by code that was made from that document alone."""
import hashlib
import json
import os
import random
import re
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path

FAULTLINE = os.environ["FAULTLINE"]
DOCUMENT = Path(os.environ["FAULTLINE_SOURCE"], "docs/hotlist-format.md")
KINDS = [None, "read", "write", "fetch", "walk"]
ENDS = [None, "ready", "settled", "timeout", "gone"]
CLOCKS = [None, "raw", "corrected"]
MASK = 2**64 - 1


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def bytes(self, size):
        assert self.at + size <= len(self.data), "cut off"
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self):
        n = shift = 0
        while True:
            byte = self.bytes(1)[0]
            n |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                assert n <= MASK
                return n

    def difference(self):
        n = self.number()
        return n >> 1 if n % 2 == 0 else -(n >> 1) - 1


def uvarint(n):
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes(out) + bytes([n])


def zigzag(n):
    return 2 * n if n >= 0 else -2 * n - 1


def wrapped(n):
    """A difference modulo 2^64, as the one of least size."""
    n &= MASK
    return n - 2**64 if n >= 2**63 else n


def read_origin(data):
    reader = Reader(data)
    names = ["page_size", "runs", "events_lost", "window_ns", "window_end", "clock", "agreement_raw", "agreement_corrected"]
    origin = {name: reader.number() for name in names}
    origin["window_end"], origin["clock"] = ENDS[origin["window_end"]], CLOCKS[origin["clock"]]
    for name in ("agreement_raw", "agreement_corrected"):
        origin[name] = (origin[name] - 1000000) / 1000000 if origin[name] else None
    origin["tier"] = reader.bytes(reader.number()).decode("ascii")
    origin["image_size"] = reader.number() or None
    origin["image_identity"] = reader.bytes(32).hex() if reader.number() else None
    origin["regions"] = [
        {name: reader.number() for name in ("size", "offset", "page_size")} for _ in range(reader.number())
    ]
    assert reader.at == len(data)
    return {name: value for name, value in origin.items() if value is not None}


def read_page(reader, touches, before):
    place = reader.number()
    if place & 1:
        before["region"], before["next"] = reader.number(), 0
    n = place >> 1
    page = before["next"] + (n >> 1 if n % 2 == 0 else -(n >> 1) - 1)
    assert 0 <= page < 2**52
    before["next"] = page + 1
    entry = {"region": before["region"], "offset": page * 4096}
    if not touches:
        return entry
    for name in ("first_touch_ns", "corrected_ns"):
        before[name] = entry[name] = (before[name] + reader.difference()) & MASK
    entry["seen"], entry["spread"], what = reader.number(), reader.number(), reader.number()
    entry["present"] = bool(what & 8)
    if what >> 4:
        entry["vcpu"] = (what >> 4) - 1
    if what & 7:
        entry["kind"] = KINDS[what & 7]
    says_nothing = {"first_touch_ns": 0, "corrected_ns": 0, "seen": 0, "spread": 0, "present": False}
    if all(entry.get(name) == value for name, value in says_nothing.items()) and not what:
        return {"region": entry["region"], "offset": entry["offset"]}
    return entry


def read_hpl2(data):
    """The list, as the JSON of it."""
    magic, version, flags, origin_size, count, size, packed_size = struct.unpack_from("<4sHHIIII", data)
    assert magic == b"HPL2" and version == 1 and flags < 4
    assert len(data) == 28 + origin_size + packed_size
    assert struct.unpack("<I", data[-4:])[0] == zlib.crc32(data[:-4])
    ret = {"format": "faultline-hotlist", "version": 1}
    if flags & 1:
        ret["origin"] = read_origin(data[24 : 24 + origin_size])
    assert size <= 65536 + 16 * packed_size
    body = zlib.decompress(data[24 + origin_size : -4])
    assert len(body) == size
    reader, before = Reader(body), {"region": 0, "next": 0, "first_touch_ns": 0, "corrected_ns": 0}
    ret["pages"] = [read_page(reader, flags & 2, before) for _ in range(count)]
    assert reader.at == size
    return ret


def write_origin(origin):
    def agreement(name):
        return round((origin[name] + 1) * 1000000) if name in origin else 0

    tier = origin.get("tier", "").encode("ascii")
    identity = bytes.fromhex(origin.get("image_identity", ""))
    numbers = [
        origin.get("page_size", 0),
        origin.get("runs", 0),
        origin.get("events_lost", 0),
        origin.get("window_ns", 0),
        ENDS.index(origin.get("window_end")),
        CLOCKS.index(origin.get("clock")),
        agreement("agreement_raw"),
        agreement("agreement_corrected"),
        len(tier),
    ]
    out = b"".join(map(uvarint, numbers)) + tier + uvarint(origin.get("image_size", 0))
    out += uvarint(1 if identity else 0) + identity + uvarint(len(origin["regions"]))
    for region in origin["regions"]:
        out += uvarint(region["size"]) + uvarint(region["offset"]) + uvarint(region["page_size"])
    return out


def write_hpl2(value):
    pages, body = value["pages"], b""
    touches = any(len(page) > 2 for page in pages)
    region = after = raw = corrected = 0
    for page in pages:
        number, changed = page["offset"] // 4096, page["region"] != region
        body += uvarint(2 * zigzag(number - (0 if changed else after)) + changed)
        if changed:
            body += uvarint(page["region"])
        region, after = page["region"], number + 1
        if touches:
            now, virtual = page.get("first_touch_ns", 0), page.get("corrected_ns", 0)
            what = 16 * (page["vcpu"] + 1 if "vcpu" in page else 0) + 8 * page.get("present", False)
            body += uvarint(zigzag(wrapped(now - raw))) + uvarint(zigzag(wrapped(virtual - corrected)))
            body += uvarint(page.get("seen", 0)) + uvarint(page.get("spread", 0))
            body += uvarint(what + KINDS.index(page.get("kind")))
            raw, corrected = now, virtual
    origin = write_origin(value["origin"]) if "origin" in value else b""
    packed = zlib.compress(body)
    if len(body) > 65536 + 16 * len(packed):
        packer = zlib.compressobj(strategy=zlib.Z_HUFFMAN_ONLY)
        packed = packer.compress(body) + packer.flush()
    flags = ("origin" in value) + 2 * touches
    data = struct.pack("<4sHHIIII", b"HPL2", 1, flags, len(origin), len(pages), len(body), len(packed)) + origin + packed
    return data + struct.pack("<I", zlib.crc32(data))


def identity_of(image):
    """As the document has it."""

    def mix(x):
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
        x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
        return x ^ x >> 31

    size, pages = len(image), (len(image) + 4095) // 4096
    n = min(pages, 1024)
    digest = hashlib.sha256(b"faultline-image-1\0" + struct.pack("<Q", size))
    for i in range(n):
        first, end = pages * i // n, pages * (i + 1) // n
        page = 0 if i == 0 else pages - 1 if i == n - 1 else first + mix(i) % (end - first)
        digest.update(image[page * 4096 : page * 4096 + 4096])
    return digest.hexdigest()


def faultline(*arguments, stdin=b""):
    ran = subprocess.run([FAULTLINE, "hotlist", *map(str, arguments)], input=stdin, capture_output=True, timeout=120, check=False)
    return ran.returncode, ran.stdout, ran.stderr.decode()


def convert(data, to):
    code, out, errors = faultline("convert", "-", "-", "--to", to, stdin=data)
    assert code == 0, errors
    return out


def random_page(rng, number):
    page = {"region": rng.choice([0, 0, 0, 1, 2**64 - 1]), "offset": number * 4096}
    if rng.random() < 0.9:
        page["first_touch_ns"] = rng.getrandbits(rng.randrange(65))
        page["corrected_ns"] = rng.getrandbits(rng.randrange(65))
        page["seen"] = 1 + rng.getrandbits(rng.randrange(32))
        page["spread"] = rng.getrandbits(rng.randrange(33))
        page["present"] = rng.random() < 0.5
        if rng.random() < 0.9:
            page["vcpu"] = rng.choice([0, 1, 65534])
        if rng.random() < 0.9:
            page["kind"] = rng.choice(KINDS[1:])
    return page


def random_list(rng):
    value = {"format": "faultline-hotlist", "version": 1}
    if rng.random() < 0.8:
        value["origin"] = {
            "tier": rng.choice(["", "fentry", "tp_btf"]),
            "runs": rng.randrange(11),
            "events_lost": rng.getrandbits(64),
            "window_ns": rng.getrandbits(40),
            "page_size": rng.choice([0, 4096, 65536]),
            "regions": [
                {"size": rng.getrandbits(40), "offset": rng.getrandbits(40), "page_size": 1 << rng.randrange(12, 31)}
                for _ in range(rng.randrange(4))
            ],
        }
        optional = {
            "window_end": rng.choice(ENDS[1:]),
            "clock": rng.choice(CLOCKS[1:]),
            "agreement_raw": rng.randrange(-999999, 1000001) / 1000000,
            "agreement_corrected": rng.randrange(-999999, 1000001) / 1000000,
            "image_size": 1 + rng.getrandbits(40),
            "image_identity": "%064x" % (1 + rng.getrandbits(255)),
        }
        value["origin"].update({name: optional[name] for name in optional if rng.random() < 0.7})
    numbers = rng.sample(range(2 ** rng.choice([8, 20, 52])), rng.choice([0, 1, 7, 200]))
    value["pages"] = [random_page(rng, number) for number in numbers]
    if rng.random() < 0.2:
        value["pages"] = [{"region": page["region"], "offset": page["offset"]} for page in value["pages"]]
    return value


def test_vector_of_the_document():
    text = DOCUMENT.read_text(encoding="utf-8")
    block = re.search(r'\n((?: {4}[^\n]*\n)*? {4}48 50 4c 32  01 00 .*?\n)\n', text, re.DOTALL)
    vector = bytes.fromhex("".join(re.match(r"(?:[0-9a-f]{2} {1,2})*(?:[0-9a-f]{2}$)?", line.strip() + " ")[0] for line in block[1].splitlines()))
    assert len(vector) == 132, len(vector)
    value = read_hpl2(vector)
    assert [page["offset"] for page in value["pages"]] == [4096, 8192, 0]
    assert value["origin"]["image_identity"] == bytes(range(32)).hex()
    assert json.loads(convert(vector, "json")) == value
    # The JSON and the CSV that the document shows are of that list.
    shown = re.search(r'\n    (\{"format":"faultline-hotlist","version":1,\n.*?"regions":\[[^\n]*)\n', text, re.DOTALL)[1]
    assert json.loads(re.sub(r",$", "", shown) + "}")["origin"] == value["origin"]
    rows = re.search(r"\n    (region,offset,first_touch_ns.*?)\n    2,1048576", text, re.DOTALL)[1]
    assert convert(vector, "csv").decode().splitlines() == [row.strip() for row in rows.splitlines()]


def test_random_lists_both_ways():
    rng = random.Random(11)
    for number in range(60):
        value = random_list(rng)
        ours, theirs = write_hpl2(value), convert(json.dumps(value).encode(), "hpl2")
        assert read_hpl2(theirs) == value == json.loads(convert(ours, "json")), (number, value)
        # Canonical up to the compression.
        assert ours[:20] == theirs[:20], (number, ours[:24].hex(), theirs[:24].hex(), value)
        # Through CSV, but for the origin.
        assert json.loads(convert(convert(ours, "csv"), "json"))["pages"] == value["pages"]


def test_lists_that_compress_well():
    value = {"format": "faultline-hotlist", "version": 1, "pages": [{"region": 0, "offset": i * 4096} for i in range(300000)]}
    ours, theirs = write_hpl2(value), convert(json.dumps(value).encode(), "hpl2")
    assert read_hpl2(theirs)["pages"] == value["pages"] == json.loads(convert(ours, "json"))["pages"]
    hpl1 = convert(theirs, "hpl1")
    assert len(theirs) < len(hpl1) / 10
    assert convert(convert(hpl1, "hpl2"), "hpl1") == hpl1


def test_identity_of_images(directory):
    rng = random.Random(12)
    for size in (1, 4096, 5000, 1023 * 4096, 1024 * 4096 + 1, 1025 * 4096, 3333 * 4096 + 77):
        image = rng.randbytes(size)
        path = Path(directory, f"image-{size}")
        path.write_bytes(image)
        value = {
            "origin": {"image_size": size, "image_identity": identity_of(image), "regions": []},
            "pages": [{"region": 0, "offset": 0}],
        }
        lists = Path(directory, f"{size}.hpl2")
        lists.write_bytes(write_hpl2(value))
        code, out, errors = faultline("verify", lists, "--template", path)
        assert code == 0 and b"was recorded on" in out, errors

        # One that differs in every hundredth page, and one of another length.
        pages = (size + 4095) // 4096
        changed = bytearray(image)
        for page in range(0, pages, 100):
            changed[page * 4096] ^= 1
        path.write_bytes(changed)
        code, out, errors = faultline("verify", lists, "--template", path)
        assert code == 1 and "another image" in errors and "identity" in errors, (size, errors)
        path.write_bytes(image + b"x")
        code, out, errors = faultline("verify", lists, "--template", path)
        assert code == 1 and f"on one of {size} bytes, and this one has {size + 1}" in errors, (size, errors)


def main():
    test_vector_of_the_document()
    test_random_lists_both_ways()
    test_lists_that_compress_well()
    with tempfile.TemporaryDirectory() as directory:
        test_identity_of_images(directory)
    print("all as expected")


if __name__ == "__main__":
    main()
