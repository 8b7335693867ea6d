import pytest

from cri.streaming.tokens import PENDING_LIMIT, Tokens
from sandbox.host.errors import ResourceExhausted
from tests.fakes.clock import FakeClock


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def tokens(clock):
    return Tokens(clock=clock, life_s=60.0)


def test_a_token_is_good_once(tokens):
    token = tokens.issue("this")
    assert tokens.redeem(token) == "this"
    assert tokens.redeem(token) is None


def test_each_token_stands_for_its_own_target(tokens):
    issued = {tokens.issue(number): number for number in range(100)}
    assert len(issued) == 100
    assert all(tokens.redeem(token) == number for token, number in issued.items())


def test_at_least_128_bits(tokens):
    # 6 bits in each character of base64.
    assert len(tokens.issue("x")) * 6 >= 128


def test_a_token_dies_after_its_life(tokens, clock):
    token = tokens.issue("this")
    clock.advance(59.9)
    other = tokens.issue("that")
    clock.advance(0.2)
    assert tokens.redeem(token) is None
    assert tokens.redeem(other) == "that"


def test_a_jump_of_the_wall_clock_changes_nothing(tokens, clock):
    token = tokens.issue("this")
    clock.jump_wall_s(3600.0)
    assert tokens.redeem(token) == "this"


def test_the_1001st_pending_token_is_refused_until_one_is_gone(tokens, clock):
    first = tokens.issue(0)
    for number in range(1, PENDING_LIMIT):
        tokens.issue(number)
    with pytest.raises(ResourceExhausted, match="1000"):
        tokens.issue("too many")
    assert tokens.redeem(first) == 0
    tokens.issue("fits")
    clock.advance(61)
    assert len(tokens) == 0
    tokens.issue("fits again")


@pytest.mark.parametrize(
    "token", ["", "x", "A" * 43, "A" * 10_000, "ümlaut", "../exec", "\0" * 43, "\ud800"]
)
def test_guesses_are_nothing(tokens, token):
    tokens.issue("this")
    assert tokens.redeem(token) is None
    assert len(tokens) == 1


def test_the_table_cannot_be_searched_by_token(tokens):
    token = tokens.issue("this")
    assert token not in tokens._tickets
    assert token.encode() not in tokens._tickets
