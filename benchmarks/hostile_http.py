"""What is wrong with the HTTP of a request: its form, its type, its length, its pace, its headers, or all of it."""

import gzip
from itertools import pairwise
from random import Random

from hostile_case import ANY, FRONTIER, REFUSED, Case, Target, form, junk, message, part, upload


NO_HTTP = frozenset({400, 404, 405, 413, 414, 431, 505})
HEAD = 64 * 1024
"""Bytes of a request's headers that the server takes."""
MEGABYTE = 2**20
TYPES = (
    *(None, "", "text/plain", "application/xml", "image", "/", "multipart/form-data", "multipart/form-data; boundary="),
    *("multipart/form-data; boundary=other", "multipart/mixed; boundary=frontier", "application/json", "image/png"),
    *("application/x-www-form-urlencoded", "application/octet-stream", "multipart/form-data; boundary=" + "a" * 3000),
    *("multipart/form-data; boundary=\udcff", "application/json; charset=utf-7", "text/html; charset=nonsense"),
)
PATHS = (
    *(
        "/nope",
        "//",
        "//classify",
        "/classify/",
        "/classify/x",
        "/classify%00",
        "/CLASSIFY",
        "/../../etc/passwd",
        "/%2e%2e/",
    ),
    *("/model/../../x", "/ui/../classify", "/ui/file=/etc/passwd", "/ui/gradio_api/file=/etc/passwd", "/" + "a" * 9000),
    *("/docs", "/.env", "/\udcff\udcfe", "/classify_batch/1", "/static_content/../../x", "*", "/?" + "x=1&" * 2000),
)
METHODS = ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "BREW", "get", "POSTPOSTPOST")
SPEECHES = (
    *(
        b"\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /classify\r\n\r\n",
        b"\x00" * 64,
    ),
    *(b"SSH-2.0-OpenSSH_9.6\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"EHLO me\r\n", b"*1\r\n$4\r\nPING\r\n"),
    *(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)), b"GET " + b"/a" * 50_000, b"A" * 100_000),
    *(b"GET / HTTP/1.1\r\nHost", b"POST /classify HTTP/1.1\r\nContent-Length: 5", b"GET http:// HTTP/1.1\r\n\r\n"),
)


def wrong_form(chance: Random, target: Target) -> Case:
    """A form that is broken, or has not one file `image`."""
    good, end = part(target.image), f"--{FRONTIER}--\r\n".encode()
    at = chance.randrange(len(good))
    bodies = {
        "no end": good,
        "no parts": end,
        "nothing": b"",
        "cut": good[:at],
        "no line before the end": good.rstrip(b"\r\n") + end,
        "junk before": junk(chance, 100) + good + end,
        "junk within": good[:at] + b"\r\n--frontier\r\n" + good[at:] + end,
        "no disposition": f"--{FRONTIER}\r\n\r\n".encode() + target.image + b"\r\n" + end,
        "no empty line": f"--{FRONTIER}\r\nContent-Disposition: form-data".encode() + end,
        "other name": part(target.image, disposition='form-data; name="picture"; filename="x.png"') + end,
        "no name": part(target.image, disposition='form-data; filename="x.png"') + end,
        "odd name": part(target.image, disposition='form-data; name="im\x00age"; filename="\udcff"') + end,
        "path as file name": part(b"", disposition='form-data; name="image"; filename="../../../etc/passwd"') + end,
        "text": part(b"text", disposition='form-data; name="image"') + end,
        "URL": part(b"http://localhost:1/x.png", disposition='form-data; name="image"') + end,
        "two images": good + good + end,
        "many fields": part(b"1", disposition='form-data; name="a"') * 300 + good + end,
        "many files": good.replace(b'"image"', b'"a"') * 50 + good + end,
        "long header": part(target.image, type="image/png; " + "a" * chance.choice((10_000, 200_000))) + end,
        "many headers": good.replace(b"\r\n\r\n", b"\r\n" + b"X-A: b\r\n" * 500 + b"\r\n", 1) + end,
        "within a form": part(good + end, type="multipart/form-data; boundary=frontier") + end,
    }
    name = chance.choice(list(bodies))
    path = "/classify_batch" if chance.random() < 0.2 else "/classify"
    # These may pass for a form with one good image, or hold one.
    lenient = name in (
        "no end",
        "cut",
        "no line before the end",
        "junk before",
        "many headers",
        "long header",
        "odd name",
    )
    expect = ANY if lenient or path == "/classify_batch" else REFUSED
    return Case(about=f"form to {path}: {name}", parts=(form(bodies[name], path=path, end=b""),), expect=expect)


def wrong_type(chance: Random, target: Target) -> Case:
    """A good form under another content type, or an encoding that nobody asked for."""
    body, path = part(target.image) + b"--frontier--\r\n", chance.choice(("/classify", "/classify_batch"))
    if chance.random() < 0.3:
        encoding = chance.choice(("gzip", "br", "zstd", "identity, gzip", "nonsense"))
        packed = gzip.compress(body, mtime=0)
        headers = (f"Content-Encoding: {encoding}",)
        sent = message(packed, path=path, type="multipart/form-data; boundary=frontier", headers=headers)
        return Case(about=f"encoding {encoding}", parts=(sent,), expect=ANY)
    type = chance.choice(TYPES)
    return Case(about=f"type {str(type)[:40]} to {path}", parts=(message(body, path=path, type=type),), expect=REFUSED)


def wrong_length(chance: Random, target: Target) -> Case:
    """A length that is not the body's, or no number; chunks that are none."""
    body = part(target.image) + b"--frontier--\r\n"
    type = "multipart/form-data; boundary=frontier"
    head = f"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: {type}\r\n".encode()
    chunks, length = b"Transfer-Encoding: chunked\r\n\r\n", b"Content-Length: "
    true = str(len(body)).encode()
    texts = (
        b"-1",
        b"x",
        b"",
        b"1e3",
        b"0x10",
        b"99999999999999999999999",
        b"+5",
        b"5, 6",
        true + b"\r\n" + length + b"5",
    )
    match chance.choice(("text", "less", "none", "chunk", "both", "unfinished", "more")):
        case "text":
            text = chance.choice(texts)
            sent, about, ending = head + length + text + b"\r\n\r\n" + body, f"length {text!r}", "answer"
        case "less":
            cut = chance.randrange(len(body))
            sent, about, ending = head + length + str(cut).encode() + b"\r\n\r\n" + body, f"length {cut}", "answer"
        case "none":
            sent, about, ending = head + b"\r\n" + body, "no length", "answer"
        case "chunk":
            size = chance.choice((b"x", b"-5", b"fffffffffffffffff", b"", b"5;" + b"a" * 20_000, b"0" * 100 + b"5"))
            sent, about, ending = head + chunks + size + b"\r\n" + body, f"chunk of {size[:20]!r}", "answer"
        case "both":
            sent, about, ending = head + length + true + b"\r\n" + chunks + body, "length and chunks", "answer"
        case "unfinished":
            sent, about, ending = head + chunks + b"%x\r\n" % (2 * len(body)) + body, "chunk without its end", "close"
        case _:
            sent, about, ending = head + length + b"%d\r\n\r\n" % (2 * len(body)) + body, "length of more", "close"
    return Case(
        about=about, parts=(sent,), ending="close" if ending == "close" else "answer",
        expect=REFUSED | NO_HTTP | {501}, may_close=True, wait_s=0.5,
    )  # fmt: skip


def too_large(chance: Random, target: Target) -> Case:
    """A body over the limit: declared and not sent, declared and sent, or in chunks."""
    kind = chance.choice(("declared", "sent", "chunks"))
    size = 11 * MEGABYTE
    if kind == "declared":
        sent: tuple[bytes, ...] = (message(b"x", type="image/png", length=chance.choice((size, 2**40))),)
    elif kind == "sent":
        sent = (upload(target.image + bytes(size)),)
    else:
        head = b"POST /classify_batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        block = b"%x\r\n%b\r\n" % (MEGABYTE, b" " * MEGABYTE)
        sent = (head + b"Transfer-Encoding: chunked\r\n\r\n", *[block] * 11, b"0\r\n\r\n")
    return Case(about=f"too large, {kind}", parts=sent, expect=frozenset({413}))


def slow(chance: Random, target: Target) -> Case:
    """A good request in small pieces with pauses between: there is nothing to refuse."""
    whole = upload(target.image)
    count = chance.randint(2, 12)
    cuts = [0, *sorted(chance.sample(range(1, len(whole)), count - 1)), len(whole)]
    parts = tuple(whole[a:b] for a, b in pairwise(cuts))
    return Case(about=f"in {count} pieces", parts=parts, pause_s=0.03, expect=frozenset({200}))


def stalled(chance: Random, target: Target) -> Case:
    """Half a body, and then nothing: the server must not wait for ever."""
    assert target.stall_s is not None
    whole = upload(target.image)
    cut = chance.randrange(whole.index(b"\r\n\r\n") + 4, len(whole))
    about = f"nothing after {cut} of {len(whole)} bytes"
    return Case(about=about, parts=(whole[:cut],), expect=frozenset({408}), wait_s=target.stall_s + 3)


def disconnected(chance: Random, target: Target) -> Case:
    """The client goes: at a random place of its request, or when it is whole."""
    whole = upload(target.image, path=chance.choice(("/classify", "/classify", "/classify_batch", "/nope")))
    cut = chance.choice((chance.randrange(1, len(whole)), len(whole)))
    reset = chance.random() < 0.5
    about = f"{'reset' if reset else 'closed'} after {cut} of {len(whole)} bytes"
    return Case(about=about, parts=(whole[:cut],), ending="reset" if reset else "close")


def no_http(chance: Random, target: Target) -> Case:
    """Something else than HTTP."""
    sent = chance.choice((*SPEECHES, junk(chance, 2000), junk(chance, 200) + b"\r\n\r\n"))
    about = f"{sent[:24]!r}, {len(sent)} bytes"
    return Case(about=about, parts=(sent,), expect=NO_HTTP | {200, 403, 415}, may_close=True, wait_s=0.3)


def headers(chance: Random, target: Target) -> Case:
    """Far too many headers, or one that is far too long or holds what none may."""
    kind = chance.choice(("many", "long", "name", "value", "twice", "folded", "endless"))
    if kind == "endless":
        return _endless(chance)
    more = {
        "many": [f"X-{i}: {i}" for i in range(chance.choice((200, 5000)))],
        "long": ["X-Long: " + "a" * chance.choice((9_000, 70_000, 1_000_000))],
        "name": [chance.choice(("X Y: 1", ": 1", "X\x00: 1", "nothing", "\udcff: 1"))],
        "value": [chance.choice(("X: \x00", "X: \x7f\x01", "X: \udcff\udcfe", "X-Request-ID: " + "i" * 5000))],
        "twice": [
            "Host: other",
            "Content-Type: text/plain",
            "X-Request-ID: a",
            "X-Request-ID: ../b",
            "Expect: nonsense",
        ],
        "folded": ["X: 1\r\n 2\r\n\t3"],
    }[kind]
    body = part(target.image) + b"--frontier--\r\n"
    sent = message(body, type="multipart/form-data; boundary=frontier", headers=more)
    return Case(about=f"headers: {kind}", parts=(sent,), expect=ANY | NO_HTTP | {417}, may_close=True)


def _endless(chance: Random) -> Case:
    """Headers, or one of them, of which the end never comes."""
    begin = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nX-A: "
    block = chance.choice((b"a" * HEAD, (b"a" * 1000 + b"\r\nX-A: ") * (HEAD // 1000)))
    return Case(about="headers: endless", parts=(begin, *[block] * 8), expect=frozenset({431}), may_close=True)


def wrong_place(chance: Random, target: Target) -> Case:
    """A path that is not there, or a method that the path has not."""
    if chance.random() < 0.5:
        path, method = chance.choice(PATHS), chance.choice(("GET", "POST"))
        expect = NO_HTTP | {307, 308, 403, 422}
        shaped = path.isascii() and not path.startswith(("/ui", "*"))
        if path in ("//", "/model/../../x", "/static_content/../../x") or path.startswith("/?"):
            expect |= {200}
    else:
        path, method = chance.choice(("/classify", "/classify_batch", "/model", "/readyz")), chance.choice(METHODS)
        expect = NO_HTTP | ({200} if method in ("GET", "OPTIONS") else set())
        shaped = method in METHODS[:7]  # the web server does not know the others
    body = b"" if method == "GET" else b"x"
    sent = message(body, path=path, method=method, headers=("Connection: close",))
    return Case(about=f"{method} {path[:40]}", parts=(sent,), expect=expect, shaped=shaped, may_close=not shaped)


def upgrade(chance: Random, target: Target) -> Case:
    """A WebSocket, or another protocol, where there is none."""
    protocol = chance.choice(("websocket", "h2c", "nonsense"))
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    lines = ("Connection: Upgrade", f"Upgrade: {protocol}", key, "Sec-WebSocket-Version: 13")
    sent = message(path=chance.choice(("/classify", "/model", "/", "/nope", "/ws")), method="GET", headers=lines)
    expect = NO_HTTP | {200, 401, 403, 426}
    return Case(about=f"upgrade to {protocol}", parts=(sent,), expect=expect, shaped=False, may_close=True, wait_s=2)
