import pytest

from sandbox.host.cgroupfs import flat_keyed, max_or_int, nested_keyed, psi
from sandbox.host.errors import Corrupt


def test_flat_keyed():
    text = "usage_usec 17\nuser_usec 9\n\nodd line here\nneg -1\nname\n"
    assert flat_keyed(text) == {"usage_usec": 17, "user_usec": 9, "neg": -1}


def test_nested_keyed():
    text = "8:0 rbytes=1 wbytes=2 dbytes=max\n253:0\nanon N0=4 N1=5\n"
    assert nested_keyed(text) == {
        "8:0": {"rbytes": 1, "wbytes": 2},
        "253:0": {},
        "anon": {"N0": 4, "N1": 5},
    }
    assert nested_keyed("\n") == {}


def test_max_or_int():
    assert max_or_int("max\n") is None
    assert max_or_int("4096\n") == 4096
    with pytest.raises(Corrupt):
        max_or_int("")


def test_pressure():
    text = (
        "some avg10=1.50 avg60=0.25 avg300=0.00 total=123456\n"
        "full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
        "new something=else\n"
    )
    found = psi(text)
    assert set(found) == {"some", "full"}
    assert found["some"].avg10_percent == 1.5
    assert found["some"].total_usec == 123456
    assert psi("\n") == {}
