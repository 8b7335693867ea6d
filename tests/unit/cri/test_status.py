import grpc
import pytest

from cri.status import CODES, TEXT_LIMIT, Unimplemented, code_of, text_of
from imageservice.errors import (
    PolicyInvalid,
    RegistryBlocked,
    RegistryUnavailable,
    SignatureValidationFailed,
)
from sandbox.host import errors


def classes_below(kind):
    for child in kind.__subclasses__():
        yield child
        yield from classes_below(child)


def test_every_class_of_the_host_has_a_code():
    ours = [c for c in classes_below(errors.PodwrightError) if c.__module__ == errors.__name__]
    assert len(ours) >= 14
    for kind in ours:
        assert any(base in CODES for base in kind.__mro__), kind


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Busy("x"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.Unsupported("x"), grpc.StatusCode.FAILED_PRECONDITION),
        (Unimplemented("x"), grpc.StatusCode.UNIMPLEMENTED),
        (errors.Corrupt("x"), grpc.StatusCode.DATA_LOSS),
        (RegistryUnavailable("x"), grpc.StatusCode.UNKNOWN),
        (SignatureValidationFailed("x"), grpc.StatusCode.UNKNOWN),
        (PolicyInvalid("x"), grpc.StatusCode.UNKNOWN),
        (RegistryBlocked("x"), grpc.StatusCode.PERMISSION_DENIED),
        (errors.PodwrightError("x"), grpc.StatusCode.INTERNAL),
        (type("Deeper", (errors.NotFound,), {})("x"), grpc.StatusCode.NOT_FOUND),
    ],
)
def test_code_is_that_of_the_nearest_class(error, code):
    assert code_of(error) is code


def test_text_has_the_hint_and_never_the_replay_line():
    error = errors.Denied("cannot", hint="try sudo", replay="crun --secret", path="/x")
    assert text_of(error) == "cannot (path=/x); try sudo"


def test_the_kubelet_recognises_an_unavailable_registry_by_the_beginning_of_the_text():
    error = RegistryUnavailable("registry does not answer")
    assert text_of(error).startswith("RegistryUnavailable: ")


def test_the_kubelet_recognises_a_refusal_by_policy_by_the_beginning_of_the_text():
    for error in (SignatureValidationFailed("no signature"), PolicyInvalid("policy /x: bad")):
        assert text_of(error).startswith("SignatureValidationFailed: ")


def test_text_is_one_bounded_line():
    text = text_of(errors.Internal("a\n\x00b" + "x" * 10_000))
    assert text.startswith("a b")
    assert len(text) == TEXT_LIMIT


def test_the_client_is_told_no_secret():
    error = errors.InvalidArgument(
        "host is refused", host="http://somebody:hunter2@host/?k=hunter3"
    )
    told = text_of(error)
    assert "hunter" not in told
    assert "host is refused" in told
    long = errors.InvalidArgument("x" * (TEXT_LIMIT - 20) + " http://somebody:hunter2@host/")
    assert "hunter" not in text_of(long)
