from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kvmwire.codes import FailureCode, WireError
from kvmwire.source import MAX_URL_LENGTH, Origin, SourceUrl, redact
from tests.wire.strategies import urls

MISLEADING = {
    "an address as one number": "http://2130706433/a",
    "an address in hexadecimal": "http://0x7f000001/a",
    "hexadecimal parts": "http://0x7f.0.0.1/a",
    "a hexadecimal last part": "http://127.0.0.0x1/a",
    "an empty hexadecimal": "http://0x/a",
    "a short address": "http://127.1/a",
    "an octal part": "http://0177.0.0.1/a",
    "an octal last part": "http://127.0.0.01/a",
    "an address with a trailing dot": "http://127.0.0.1./a",
    "too many parts": "http://1.2.3.4.5/a",
    "a part over 255": "http://1.2.3.256/a",
    "digits in circles": "http://\u2460\u2461\u2466.0.0.1/a",
    "full-width digits": "http://\uff11\uff12\uff17.0.0.1/a",
    "a full-width dot": "http://127\u30020.0.1/a",
    "a name that is not ASCII": "http://b\u00fccher.example/a",
    "user information": "http://user@example.org/a",
    "user and password": "http://user:secret@example.org/a",
    "another host as user": "http://good.example@127.0.0.1/a",
    "empty user": "http://@example.org/a",
    "a NUL": "http://example.org/\0",
    "an encoded NUL": "http://example.org/%00",
    "an encoded NUL in the host": "http://example.org%00.evil/a",
    "an encoded line break": "http://example.org/a%0D%0AX:1",
    "an encoded small line feed": "http://example.org/a%0aX:1",
    "an encoded host": "http://%31%32%37.0.0.1/a",
    "a line break": "http://example.org/a\nHost: evil",
    "a line break at the end": "http://example.org/a\n",
    "outer space": " http://example.org/a",
    "inner space": "http://example.org/a b",
    "a backslash": "http://good.example\\@127.0.0.1/a",
    "backslashes for slashes": "http:\\\\example.org\\a",
    "a broken escape": "http://example.org/100%",
    "quotes": 'http://example.org/"a"',
    "a fragment": "http://example.org/a#b",
    "no scheme": "example.org/a",
    "an empty scheme": "://example.org/a",
    "one slash": "http:/example.org/a",
    "no host": "http:///a",
    "only a port": "http://:80/a",
    "an empty port": "http://example.org:/a",
    "port 0": "http://example.org:0/a",
    "a large port": "http://example.org:65536/a",
    "a port of letters": "http://example.org:http/a",
    "two ports": "http://example.org:80:80/a",
    "an open bracket": "http://[::1/a",
    "no IPv6 address": "http://[gg::1]/a",
    "IPv4 in brackets": "http://[127.0.0.1]/a",
    "an IPv6 zone": "http://[fe80::1%25eth0]/a",
    "text behind the bracket": "http://[::1]evil/a",
    "an IPv6 address without brackets": "http://::1/a",
    "an empty label": "http://example..org/a",
    "a label that starts with a hyphen": "http://-example.org/a",
    "a long label": "http://" + "a" * 64 + ".org/a",
    "a long name": "http://" + "a." * 127 + "org/a",
    "too long": "http://example.org/" + "a" * MAX_URL_LENGTH,
    "nothing": "",
    "shell characters in the host": "nfs://host;id/export/a",
    "a substitution": "nfs://$(id)/export/a",
}


@pytest.mark.parametrize("text", MISLEADING.values(), ids=MISLEADING)
def test_a_misleading_url_is_refused(text: str) -> None:
    with pytest.raises(WireError, match=r"^source URL ") as caught:
        SourceUrl.parse(text)
    assert caught.value.code is FailureCode.URL_INVALID
    assert "secret" not in caught.value.message
    assert caught.value.message.isascii()
    assert len(caught.value.message) < 600


@pytest.mark.parametrize(
    ("text", "origin", "shown"),
    [
        ("http://example.org/a", Origin("http", "example.org", 80), "http://example.org/a"),
        ("HTTPS://Example.ORG/A", Origin("https", "example.org", 443), "https://example.org/A"),
        ("https://example.org:443/a", Origin("https", "example.org", 443), "https://example.org/a"),
        ("https://example.org:8443/a", Origin("https", "example.org", 8443), "https://example.org:8443/a"),
        ("https://example.org", Origin("https", "example.org", 443), "https://example.org"),
        ("https://example.org?a=b", Origin("https", "example.org", 443), "https://example.org"),
        ("https://example.org/a?X-Sig=s3cret&b=%2F", Origin("https", "example.org", 443), "https://example.org/a"),
        ("http://127.0.0.1:8000/a", Origin("http", "127.0.0.1", 8000), "http://127.0.0.1:8000/a"),
        ("http://[2001:DB8:0::1]/a", Origin("http", "2001:db8::1", 80), "http://[2001:db8::1]/a"),
        ("http://[::1]:8080/a", Origin("http", "::1", 8080), "http://[::1]:8080/a"),
        ("http://example.org./a", Origin("http", "example.org.", 80), "http://example.org./a"),
        (
            "http://xn--bcher-kva.example/a",
            Origin("http", "xn--bcher-kva.example", 80),
            "http://xn--bcher-kva.example/a",
        ),
        ("http://my_host/a", Origin("http", "my_host", 80), "http://my_host/a"),
        ("http://example.org/a@b:c", Origin("http", "example.org", 80), "http://example.org/a@b:c"),
        ("http://example.org//a/../b", Origin("http", "example.org", 80), "http://example.org//a/../b"),
        ("nfs://filer/export/a.qcow2", Origin("nfs", "filer", 2049), "nfs://filer/export/a.qcow2"),
        ("file:///srv/a.iso", Origin("file", "", None), "file:///srv/a.iso"),
        ("s3+x://bucket/a", Origin("s3+x", "bucket", None), "s3+x://bucket/a"),
    ],
)
def test_a_plain_url_is_read(text: str, origin: Origin, shown: str) -> None:
    url = SourceUrl.parse(text)
    assert (url.raw, url.origin, str(url)) == (text, origin, shown)


@given(urls)
def test_the_url_stays_byte_for_byte_as_given(text: str) -> None:
    assert SourceUrl.parse(text).raw == text


@given(urls)
def test_what_is_shown_has_no_query(text: str) -> None:
    url = SourceUrl.parse(text)
    assert "?" not in f"{url} {url!r}"
    assert "token" not in str(url).removesuffix(url.path)
    assert redact(text) == text.partition("?")[0]


@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    try:
        url = SourceUrl.parse(text)
    except WireError as exc:
        assert exc.code is FailureCode.URL_INVALID  # noqa: PT017 - either outcome is right, for other texts
        assert exc.message.isascii()  # noqa: PT017 - as above
    else:
        assert url.raw == text


SECRET = "Tr0ub4dor"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"https://user:{SECRET}@example.org/a?b", "https://example.org/a"),
        (f"https://{SECRET}@example.org:8443/a@b", "https://example.org:8443/a@b"),
        (f"https://a@b:{SECRET}@example.org/", "https://example.org/"),
        (f"https://[::1]:80/a?sig={SECRET}", "https://[::1]:80/a"),
        (f"https://example.org/a#{SECRET}", "https://example.org/a"),
        (f"https://example.org/a?x=\n{SECRET}", "https://example.org/a"),
        (f"https://user:p/{SECRET}@example.org/a", "(not shown)"),
        (f"https://user:p?{SECRET}@example.org/a", "(not shown)"),
        (f"https:/user:{SECRET}@example.org/a", "(not shown)"),
        (f"https:///user:{SECRET}@example.org/a", "(not shown)"),
        (f"https:\\\\user:{SECRET}@example.org/a", "(not shown)"),
        (f"user:{SECRET}@example.org/a", "(not shown)"),
        ("https://b\u00fccher.example/\x1b[31m", "https://b?cher.example/?[31m"),
        ("https://example.org/" + "a" * 300, "https://example.org/" + "a" * 180),
    ],
)
def test_redaction_shows_no_secret_whatever_the_form(text: str, shown: str) -> None:
    assert redact(text) == shown


@given(
    st.sampled_from(["https://", "http:/", "http:", "", "https:///", "HTTPS://x@"]),
    st.text(max_size=8),
    st.sampled_from(["", "/", ":", "@", "\\", "\n"]),
    st.sampled_from(["", "example.org/a", "[::1]/a", "h:80/a?q"]),
)
def test_a_password_before_an_at_sign_is_never_shown(start: str, user: str, around: str, rest: str) -> None:
    assume(not set("/?#") & set(user))
    assert SECRET not in redact(f"{start}{user}:{around}{SECRET}{around}@{rest}")


@given(st.text())
def test_redaction_is_printable_ascii_and_short(text: str) -> None:
    shown = redact(text)
    assert shown.isascii()
    assert shown.isprintable()
    assert len(shown) <= 200
