import pytest

from cri.streaming.http1 import HttpRequest
from cri.streaming.negotiate import Agreed, Carrier, Refusal, negotiate

NONCE = "dGhlIHNhbXBsZSBub25jZQ=="


def spdy(*offers, path="/exec/token", method="POST", **headers):
    pairs = {"connection": "Upgrade", "upgrade": "SPDY/3.1", **headers}
    return HttpRequest(
        method,
        path,
        (*pairs.items(), *(("x-stream-protocol-version", offer) for offer in offers)),
    )


def websocket(*offers, path="/exec/token", method="GET", **headers):
    pairs = {
        "connection": "keep-alive, Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": NONCE,
        **headers,
    }
    return HttpRequest(
        method,
        path,
        (*pairs.items(), *((("sec-websocket-protocol", ", ".join(offers)),) if offers else ())),
    )


def test_spdy_takes_the_first_offer_it_knows():
    agreed = negotiate(spdy("v9.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io"))
    assert isinstance(agreed, Agreed)
    assert (agreed.kind, agreed.token) == ("exec", "token")
    assert (agreed.carrier, agreed.protocol) == (Carrier.SPDY, "v4.channel.k8s.io")
    assert ("X-Stream-Protocol-Version", "v4.channel.k8s.io") in agreed.headers
    assert ("Upgrade", "SPDY/3.1") in agreed.headers


@pytest.mark.parametrize(
    ("offer", "structured", "resizes"),
    [
        ("v4.channel.k8s.io", True, True),
        ("v3.channel.k8s.io", False, True),
        ("v2.channel.k8s.io", False, False),
        ("channel.k8s.io", False, False),
    ],
)
def test_what_the_spdy_protocols_can(offer, structured, resizes):
    agreed = negotiate(spdy(offer, path="/attach/t"))
    assert isinstance(agreed, Agreed)
    assert (agreed.structured_status, agreed.resizes) == (structured, resizes)


def test_no_offer_is_the_oldest_protocol():
    agreed = negotiate(spdy())
    assert isinstance(agreed, Agreed)
    assert agreed.protocol == ""
    assert not agreed.structured_status
    assert not agreed.resizes
    assert all(name != "X-Stream-Protocol-Version" for name, _ in agreed.headers)


def test_spdy_knows_no_v5():
    refusal = negotiate(spdy("v5.channel.k8s.io"))
    assert isinstance(refusal, Refusal)
    assert refusal.status == 403
    accepted = [v for name, v in refusal.headers if name == "X-Accepted-Stream-Protocol-Versions"]
    assert accepted[0] == "v4.channel.k8s.io"
    assert len(accepted) == 4


def test_the_accept_header_of_rfc_6455():
    agreed = negotiate(websocket("v5.channel.k8s.io"))
    assert isinstance(agreed, Agreed)
    # The nonce and its answer are the RFC's own example, section 1.3.
    assert ("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") in agreed.headers
    assert ("Sec-WebSocket-Protocol", "v5.channel.k8s.io") in agreed.headers


@pytest.mark.parametrize(
    ("offer", "base64", "structured", "half_close"),
    [
        ("v5.channel.k8s.io", False, True, True),
        ("v4.channel.k8s.io", False, True, False),
        ("v4.base64.channel.k8s.io", True, True, False),
        ("channel.k8s.io", False, False, False),
        ("base64.channel.k8s.io", True, False, False),
    ],
)
@pytest.mark.parametrize("kind", ["exec", "attach"])
def test_what_the_websocket_protocols_can(kind, offer, base64, structured, half_close):
    agreed = negotiate(websocket(offer, path=f"/{kind}/t"))
    assert isinstance(agreed, Agreed)
    assert agreed.carrier is Carrier.WEBSOCKET
    assert (agreed.base64, agreed.structured_status, agreed.half_close, agreed.resizes) == (
        base64,
        structured,
        half_close,
        True,
    )


def test_port_forward():
    tunnel = negotiate(websocket("SPDY/3.1+portforward.k8s.io", path="/portforward/t"))
    assert isinstance(tunnel, Agreed)
    assert tunnel.carrier is Carrier.TUNNEL
    plain = negotiate(spdy("portforward.k8s.io", path="/portforward/t"))
    assert isinstance(plain, Agreed)
    assert plain.carrier is Carrier.SPDY
    channels = negotiate(websocket("v4.channel.k8s.io", path="/portforward/t"))
    assert isinstance(channels, Agreed)
    assert channels.carrier is Carrier.WEBSOCKET


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (spdy("v4.channel.k8s.io", path="/"), 404),
        (spdy("v4.channel.k8s.io", path="/exec"), 404),
        (spdy("v4.channel.k8s.io", path="/exec/"), 404),
        (spdy("v4.channel.k8s.io", path="/exec/token/more"), 404),
        (spdy("v4.channel.k8s.io", path="/run/token"), 404),
        (spdy("v4.channel.k8s.io", path="//exec/token"), 404),
        (spdy("v4.channel.k8s.io", path="http://elsewhere/exec/token"), 404),
        (spdy("v4.channel.k8s.io", method="PUT"), 405),
        (spdy("v4.channel.k8s.io", method="DELETE"), 405),
        (websocket("v5.channel.k8s.io", method="POST"), 405),
        (spdy("v4.channel.k8s.io", upgrade="h2c"), 400),
        (spdy("v4.channel.k8s.io", connection="keep-alive"), 400),
        (HttpRequest("GET", "/exec/token", (("host", "x"),)), 400),
        (spdy("portforward.k8s.io"), 403),
        (spdy("v4.channel.k8s.io", path="/portforward/t"), 403),
        (websocket("SPDY/3.1+portforward.k8s.io"), 403),
        (websocket("v6.channel.k8s.io"), 403),
        (websocket("v5.channel.k8s.io", path="/portforward/t"), 403),
        (websocket("v5.channel.k8s.io", **{"sec-websocket-version": "8"}), 426),
        (websocket("v5.channel.k8s.io", **{"sec-websocket-key": "short"}), 400),
        (websocket("v5.channel.k8s.io", **{"sec-websocket-key": "ü" * 24}), 400),
    ],
)
def test_refusals(request_, status):
    refusal = negotiate(request_)
    assert isinstance(refusal, Refusal), refusal
    assert refusal.status == status
    assert all(name != "Location" for name, _ in refusal.headers)
