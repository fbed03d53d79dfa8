import errno
import socket
import ssl

import pytest
from redis.exceptions import ResponseError

from payswitch.reasons import reason


def untrusted(code: int, message: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify")
    error.verify_code, error.verify_message = code, message
    return error


def tls_error(said: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {said}] (_ssl.c:1000)")
    error.reason = said
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 1)"), "connection refused"),
        (ConnectionResetError(errno.ECONNRESET, ""), "connection reset by peer"),
        (OSError(errno.EHOSTUNREACH, "x"), "no route to host"),
        (
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            "host name not known: pay.invalid",
        ),
        (
            socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
            "host name can't be looked up: pay.invalid (temporary failure in name resolution)",
        ),
        (
            untrusted(20, "unable to get local issuer certificate"),
            "certificate not trusted: unable to get local issuer certificate",
        ),
        (untrusted(62, "Hostname mismatch"), "certificate is for another host"),
        (untrusted(64, "IP address mismatch"), "certificate is for another host"),
        (tls_error("WRONG_VERSION_NUMBER"), "TLS failed: wrong version number"),
        (FileNotFoundError(2, "x", "/no/such"), "no such file or directory: /no/such"),
        (OSError("the lookup was ended"), "the lookup was ended"),
        (TimeoutError(), "no answer in time"),
        (ResponseError("NOPERM this user\r\nsecond line"), "NOPERM this user"),
        (ResponseError("a\x1b[2Jb"), "a\\x1b[2Jb"),
        (RuntimeError(), "runtime error"),
        (EOFError(), "eof error"),
    ],
)
def test_a_failure_is_told_in_words(error: Exception, words: str) -> None:
    assert reason(error, "pay.invalid") == words
