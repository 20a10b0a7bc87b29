"""The page in a browser where more clicks come than the server takes at a time."""

import contextlib
import socket
from collections.abc import Iterator

from browsing import Browsing

from serve.web import ofpage


@contextlib.contextmanager
def crowd(server: str) -> Iterator[None]:
    """As many others as there are places are in the middle of a click."""
    host, port = server.removeprefix("http://").split(":")
    head = f"POST {ofpage.CALLS}run/predict HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9\r\n\r\n"
    with contextlib.ExitStack() as others:
        for _ in range(ofpage.at_once()):
            other = others.enter_context(socket.create_connection((host, int(port)), timeout=10))
            other.sendall(head.encode())
        yield


def test_a_click_too_many_is_told_changes_nothing_and_can_be_repeated(page: Browsing, digits_server: str) -> None:
    page.sample(1)
    before = page.answer
    with crowd(digits_server):
        page.all("#samples button.thumbnail-item")[2].click()
        page.until(lambda: any("503" in words for words in page.complaints()))
        assert page.answer == before
        (told,) = page.all("#refused")
        assert told.get_attribute("role") == "alert"
        assert "again" in told.text
    page.sample(3)
    assert not page.all("#refused")
    page.complaints()  # Gradio's own of a click that failed
