"""Redaction: what must go, what must stay, and that neither hostile text nor size hurts."""

from __future__ import annotations

import ast
import json
import random
import re
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trifle_otel import redaction, redaction_literals, redaction_text
from trifle_otel.errors import UsageError
from trifle_otel.redaction import CUSTOM_FAILED, Redactor

SECRET = "hunter2"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-DEF_123"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEhunter2\n-----END RSA PRIVATE KEY-----"
REDACTOR = Redactor()

SERIALISED = {
    # quotes and assignments
    "'password': 'hunter2'": "'password': '[redacted:password]'",
    '"password": "hunter2"': '"password": "[redacted:password]"',
    "password=hunter2": "password=[redacted:password]",
    "password: hunter2": "password: [redacted:password]",
    "password = hunter2": "password = [redacted:password]",
    "secret => hunter2": "secret => [redacted:secret]",
    "pwd=hunter2": "pwd=[redacted:password]",
    "login(user='bob', passwd=b'hunter2', tries=3)": "login(user='bob', passwd=b'[redacted:password]', tries=3)",
    "connect(password=hunter2,user=bob)": "connect(password=[redacted:password],user=bob)",
    "def f(password: str = 'hunter2'):": "def f(password: str = '[redacted:password]'):",
    "password=SecretStr('hunter2 x'), n=1": "password=[redacted:password], n=1",
    "os.environ['DB_PASSWORD'] = 'hunter2'": "os.environ['DB_PASSWORD'] = '[redacted:password]'",
    # names by their words
    "api_key=hunter2": "api_key=[redacted:api-key]",
    "apiKey=hunter2&page=3": "apiKey=[redacted:api-key]&page=3",
    "X-Api-Key: hunter2": "X-Api-Key: [redacted:api-key]",
    "API key: hunter2": "API key: [redacted:api-key]",
    "APIKEY=hunter2": "APIKEY=[redacted:api-key]",
    "access_token=hunter2, user=5": "access_token=[redacted:token], user=5",
    "client_secret: hunter2;": "client_secret: [redacted:secret];",
    "db_password='hunter2'": "db_password='[redacted:password]'",
    "PGPASSWORD=hunter2 psql": "PGPASSWORD=[redacted:password] psql",
    "password2=hunter2": "password2=[redacted:password]",
    "password_confirmation=hunter2": "password_confirmation=[redacted:password]",
    "aws_secret_access_key = hunter2": "aws_secret_access_key = [redacted:api-key]",
    "smtp_pass: hunter2": "smtp_pass: [redacted:password]",
    "dbPass='hunter2'": "dbPass='[redacted:password]'",
    "signingKey=hunter2, sessionKey=hunter2": "signingKey=[redacted:secret], sessionKey=[redacted:session]",
    "X-Amz-Signature=hunter2&x=1": "X-Amz-Signature=[redacted:secret]&x=1",
    "PHPSESSID=hunter2; x": "PHPSESSID=[redacted:session]; x",
    "'private_key': 'hunter2'": "'private_key': '[redacted:private-key]'",
    "'cvv': 123": "'cvv': '[redacted:card]'",
    # structures
    "{'token': {'a': 'hunter2', 'b': [1, 'x)']}, 'price': 5}": "{'token': '[redacted:token]', 'price': 5}",
    "{'secrets': ['hunter2', 'it\\'s'], 'x': 1}": "{'secrets': '[redacted:secret]', 'x': 1}",
    '{"token":{"a":"hunter2"},"price":5}': '{"token":"[redacted:token]","price":5}',
    '{"token":123,"price":5}': '{"token":"[redacted:token]","price":5}',
    "get(url, auth=('bob', 'hunter2'), timeout=3)": "get(url, auth=[redacted:authorization], timeout=3)",
    "cookies={'sid': 'hunter2'}, timeout=3": "cookies=[redacted:cookie], timeout=3",
    # quotes within quotes, and strings within strings
    r"{'password': 'it\'s hunter2', 'x': 1}": "{'password': '[redacted:password]', 'x': 1}",
    r'{"password": "a\"hunter2", "x": 1}': '{"password": "[redacted:password]", "x": 1}',
    r'"{\"password\": \"a\\\"hunter2\", \"x\": 1}"': r'"{\"password\": \"[redacted:password]\", \"x\": 1}"',
    r"""'{"password": "a\\"hunter2", "x": 1}'""": """'{"password": "[redacted:password]", "x": 1}'""",
    "{'token': 'hunter2'\n          'hunter2', 'x': 1}": "{'token': '[redacted:token]', 'x': 1}",
    "password='hunter2": "password='[redacted:password]",
    r"'line\npassword=hunter2\nuser=bob'": r"'line\npassword=[redacted:password]\nuser=bob'",
    # headers
    "Authorization: Bearer hunter2.hunter2\nHost: x": "Authorization: [redacted:authorization]\nHost: x",
    r"b'GET /\r\nAuthorization: Basic aHVudGVyMg==\r\nHost: x'": (
        r"b'GET /\r\nAuthorization: [redacted:authorization]\r\nHost: x'"
    ),
    'Authorization: Digest username="bob", response="hunter2", qop=auth\n': "Authorization: [redacted:authorization]\n",
    "Proxy-Authorization: hunter2": "Proxy-Authorization: [redacted:authorization]",
    "Cookie: sid=hunter2; theme=dark\nHost: x": "Cookie: [redacted:cookie]\nHost: x",
    "Set-Cookie: sid=hunter2; Expires=Wed, 21 Oct 2015": "Set-Cookie: [redacted:cookie]",
    "{'Cookie': 'sid=hunter2; a=b', 'Host': 'x'}": "{'Cookie': '[redacted:cookie]', 'Host': 'x'}",
    "[('authorization', 'Bearer hunter2')]": "[('authorization', '[redacted:authorization]')]",
    "[(b'cookie', b'sid=hunter2')]": "[(b'cookie', b'[redacted:cookie]')]",
    # command lines and XML
    "curl --token hunter2 x": "curl --token [redacted:token] x",
    "['mysql', '--password', 'hunter2', 'db']": "['mysql', '--password', '[redacted:password]', 'db']",
    '<w:Password Type="x">hunter2</w:Password>': '<w:Password Type="x">[redacted:password]</w:Password>',
}

BY_FORM = {
    JWT: "[redacted:jwt]",
    f"'\\n{JWT}'": "'\\n[redacted:jwt]'",
    "sent Bearer abcdef0123456789 along": "sent Bearer [redacted:authorization] along",
    "Basic aHVudGVyMjpodW50ZXIy": "Basic [redacted:authorization]",
    "ghp_" + "a1" * 18: "[redacted:api-key]",
    "ghs_" + "a1" * 18: "[redacted:api-key]",
    r"at .ghs_" + "a1" * 18: "at .[redacted:api-key]",
    r"'\tghs_" + "a1" * 18: r"'\t[redacted:api-key]",
    r"'\n4111111111111112 ghs_" + "a1" * 18: r"'\n4111111111111112 [redacted:api-key]",
    "AKIAIOSFODNN7EXAMPLE": "[redacted:api-key]",
    "sk_live_" + "a1" * 12: "[redacted:api-key]",
    "shpat_" + "0a" * 16: "[redacted:api-key]",
    "whsec_" + "a1B2" * 8: "[redacted:api-key]",
    "HF_TOKEN is hf_" + "aBcD" * 9: "HF_TOKEN is [redacted:api-key]",
    "dop_v1_" + "0a" * 32: "[redacted:api-key]",
    f"AccountName=x;AccountKey={'aB1+' * 21}ab==;EndpointSuffix=y": (
        "AccountName=x;AccountKey=[redacted:api-key];EndpointSuffix=y"
    ),
    f"before {PEM} after": "before [redacted:private-key] after",
    "key: -----BEGIN PRIVATE KEY-----\\nMIIE": "key: [redacted:private-key]",
    "-----BEGIN PGP PRIVATE KEY BLOCK-----\nx\n-----END PGP PRIVATE KEY BLOCK-----": "[redacted:private-key]",
    "postgresql://bob:hunter2@db:5432/prices": "postgresql://bob:[redacted:url-password]@db:5432/prices",
    "amqp://:hunter2@h": "amqp://:[redacted:url-password]@h",
    "https://bob:p@hunter2@host/x": "https://bob:[redacted:url-password]@host/x",
    "mongodb://bob:hu/nter2@h": "mongodb://bob:[redacted:url-password]@h",
    '"https:\\/\\/bob:hunter2@h"': '"https:\\/\\/bob:[redacted:url-password]@h"',
}

CARDS = {
    "4111111111111111": "[redacted:card]",
    "card 4111 1111 1111 1111 was refused": "card [redacted:card] was refused",
    "4111-1111-1111-1111,": "[redacted:card],",
    "378282246310005": "[redacted:card]",
    "3782 822463 10005": "[redacted:card]",
    "5555555555554444; 2223003122003222": "[redacted:card]; [redacted:card]",
    "6011111111111117 3530111333300000": "[redacted:card] [redacted:card]",
    "Paid with 4111111111111111.": "Paid with [redacted:card].",
    "4111 1111 1111 1111 12/27": "[redacted:card] 12/27",
    r"'Paid\n4111111111111111'": r"'Paid\n[redacted:card]'",
    "{'number': 4111111111111111}": "{'number': [redacted:card]}",
    "€4111111111111111": "€[redacted:card]",
}

NO_CARDS = [
    "4111111111111112",  # the check digit
    "1111111111111117",  # no issuer
    "04111111111111111",
    "41111111111111111",
    "0.4111111111111111",
    "4111111111111111.5",
    "4111111111111111.0",
    "[4111111111111111. 5.]",
    "0,4111111111111111",
    "-4111111111111111",
    "price=+4111111111111111",
    "4111111111111111e5",
    "1e-4111111111111111",
    "a4111111111111111",
    "4111111111111111f",
    "4111-1111 1111-1111",
    "4111 11111111 1111",
    "411111 1111 111111",
    "2024-4111111111111111-01",
    "[4111 1111 1111 1111 1111]",
    "4111 1111 1111 1111 0004",
    "order_4111111111111111",
]

HARMLESS = [
    "UPDATE users SET password = %s, token = ? WHERE secret = $1",
    "account_key=12, AccountKey=12, half of radio hf_1",
    "monkey=5",
    "keyboard: x",
    "key=commodity/calculate",
    "cache_key='abc', sort_key=price, primary_key: 3",
    "token_count: 5",
    "tokens: 316",
    "{'max_tokens': 500, 'token_type': 'x', 'tokenizer': 'y'}",
    "author: Bob",
    "{'author': 'Bob', 'authors': ['x'], 'authority': 'ECB'}",
    "authorized: yes",
    "auth: failed for user 7",
    "passed=True",
    "pass=3, first_pass: 0.5",
    "compass: north, passenger: 3, passport_country=SE",
    "Price guard pass: 12.5",
    "password=None, token=null, secret: ''",
    "has_password: True",
    "password: ****",
    "passwords: 3",
    "next_page_token=abc",
    "missing fields: ['password', 'username', 'token']",
    "Cookie: Chocolate chip 200g",
    "{'cookie': 2.5, 'cookies': 12}",
    "secretary: Bob, Secret Santa: 5 EUR",
    "Unexpected token < in JSON",
    "Token::new, secret://x",
    "session: EU, signature: (a, b)",
    "PWD=/srv/app",
    "https://host:8080/a@b",
    "https://shop.example/?mail=a@b.c",
    "ssh://git@github.com/x",
    "mail bob@x.com, see http://y:z",
    "basic configuration, Basic dGhpcyBpcyBub3Q, bearer certificates of",
    "eyJ is how base64 of JSON begins",
    "-----BEGIN CERTIFICATE-----\nMIIE\n-----END CERTIFICATE-----",
]

HOSTILE = [
    "password",
    "password=,a",
    "'password': '",
    "token=a(\n",
    "token: {'a': \"",
    "password='\\",
    "\\",
    "://a:",
    "://a:b@",
    "eyJaaaaa",
    "-eyJaaaaa.",
    "Cookie: ",
    "('password', 'x",
    "-----BEGIN PRIVATE KEY-----\n-----END ",
    "4111 1111 ",
    "[redacted:",
]


def price_job(seed: int) -> list[str]:
    """316 lines of a price calculation without a secret, about 20 kB."""
    rng = random.Random(seed)
    steps = [
        "Fetching Main product",
        "Exchange rate EUR -> SEK",
        "Customs duty for HS 7102.39",
        "VAT rate",
        "Guard pass",
    ]
    lines = ["Tracer has been initialized for commodity/calculate/one"]
    while len(lines) < 316:
        step = steps[len(lines) % 5]
        value = {"amount": rng.random() * 1000, "key": "commodity/calculate", "ean": str(rng.randrange(10**12, 10**13))}
        results = [repr(rng.random()), repr(value), str(time.time_ns()), repr([rng.random() for _ in range(4)])]
        lines += [f"{step} ↴", f"Loading https://rates.example/?day={rng.randrange(30)}", f"{step} ↵"]
        lines.append("↳ " + results[len(lines) % 4])
    return lines[:316]


def without_automaton(monkeypatch: pytest.MonkeyPatch) -> Redactor:
    """A redactor as it is where the optional package is missing."""
    monkeypatch.setattr(redaction_literals, "ahocorasick_rs", None)
    return Redactor()


@pytest.mark.parametrize("text, expected", [*SERIALISED.items(), *BY_FORM.items(), *CARDS.items()])
def test_secrets_are_replaced_by_a_marker_that_names_the_rule(text: str, expected: str) -> None:
    """Each kind of secret goes, all around it stays, and a second screening changes nothing."""
    assert REDACTOR.text(text) == expected
    assert REDACTOR.text(expected) == expected
    assert SECRET not in expected


@pytest.mark.parametrize("text", [*HARMLESS, *NO_CARDS])
def test_what_only_looks_like_a_secret_stays(text: str) -> None:
    """Harmless names, values that are none, and numbers that are no cards come back as the same object."""
    assert REDACTOR.text(text) is text


@pytest.mark.parametrize("make", [lambda texts: texts, lambda texts: [repr(t) for t in texts]])
def test_a_secret_is_found_wherever_it_stands_among_the_lines(make: Callable[[list[str]], list[str]]) -> None:
    """Screening all lines in one pass gives what screening each by itself gives, in whatever order they come."""
    lines = make([*SERIALISED, *HARMLESS, *BY_FORM, "", "\0", "\0\0", *CARDS, "↴", *NO_CARDS])
    for seed in range(20):
        random.Random(seed).shuffle(lines)
        assert REDACTOR.texts(lines) == [REDACTOR.text(line) for line in lines]


@given(
    st.lists(
        st.sampled_from(
            ["", "\0", "\0\0", "a\0b", "42", "↴", "it weighs 12", "pwd=hunter2", "4111 1111 1111 1111", JWT]
        ),
        max_size=30,
    )
)
def test_the_line_with_a_secret_is_found_behind_empty_ones_and_such_with_nuls(lines: list[str]) -> None:
    """Of few secrets and of many: what stands between lines when they are searched may stand in one as well."""
    assert REDACTOR.texts(lines) == [REDACTOR.text(line) for line in lines]


def test_lines_without_a_secret_come_back_as_the_same_list() -> None:
    """Where nothing matches, nothing is copied, however many lines there are."""
    lines = price_job(1)
    assert REDACTOR.texts(lines) is lines
    assert REDACTOR.texts([]) == []


def test_one_secret_among_many_lines_changes_that_line_alone() -> None:
    """The other lines stay the same objects, and the caller's list is not touched."""
    lines = price_job(2)
    lines[200] = "login(password='hunter2')"
    before = list(lines)
    screened = REDACTOR.texts(lines)
    assert lines == before
    assert screened[200] == "login(password='[redacted:password]')"
    assert all(new is old for row, (new, old) in enumerate(zip(screened, lines, strict=True)) if row != 200)


def test_neighbouring_lines_do_not_hide_each_others_secrets() -> None:
    """A card at a line's end, a name cut in two by the line's end: each line is judged by itself."""
    cards = ["4111111111111111"] * 3
    assert REDACTOR.texts(cards) == ["[redacted:card]"] * 3
    parts = ["api", "key=5", "4111 1111", "1111 1111"]
    assert REDACTOR.texts(parts) is parts


@pytest.mark.parametrize(
    "name, make",
    [
        ("floats", lambda rng: repr(rng.random() * 10 ** rng.randrange(-8, 16))),
        ("lists of floats", lambda rng: repr([rng.uniform(-1e6, 1e6) for _ in range(5)])),
        ("EAN-13", lambda rng: str(rng.randrange(10**12, 10**13))),
        ("UUIDs", lambda rng: str(uuid.UUID(int=rng.getrandbits(128)))),
        ("UUIDs in hex", lambda rng: uuid.UUID(int=rng.getrandbits(128)).hex),
        ("ULIDs", lambda rng: "".join(rng.choices("0123456789ABCDEFGHJKMNPQRSTVWXYZ", k=26))),
        ("nanosecond times", lambda rng: str(rng.randrange(10**18, 2 * 10**18))),
        ("snowflakes", lambda rng: str(rng.randrange(10**17, 10**19))),
        ("git hashes", lambda rng: f"{rng.getrandbits(160):040x}"),
        ("span and trace ids", lambda rng: f"00-{rng.getrandbits(128):032x}-{rng.getrandbits(64):016x}-01"),
    ],
)
def test_numbers_and_ids_pass_unchanged(name: str, make: Callable[[random.Random], str]) -> None:
    """10,000 of each kind, by themselves and in a dict's repr, come back untouched: they are the evidence."""
    rng = random.Random(f"seed of {name}")
    values = [make(rng) for _ in range(10_000)]
    texts = [*values, *(repr({"id": value, "raw": [value]}) for value in values)]
    assert REDACTOR.texts(texts) is texts


@settings(deadline=None)
@given(st.lists(st.floats(), max_size=5), st.uuids(), st.integers(10**12, 10**13 - 1), st.integers(10**16, 2**64))
def test_any_numbers_and_ids_pass_unchanged(floats: list[float], unique: uuid.UUID, ean: int, large: int) -> None:
    """Whatever floats, UUIDs, EANs and large numbers hypothesis makes up, their text is not touched."""
    for text in (repr(floats), str(unique), unique.hex, str(ean), str(large), f"↳ {floats} {unique} {ean}"):
        assert REDACTOR.text(text) is text


@settings(deadline=None)
@given(st.text(alphabet="ab'\"\\ ,;:=(){}[]\n@/<é\0", max_size=12), st.text(alphabet="ab'\"\\ ,)}\n", max_size=8))
def test_a_value_under_a_secret_key_never_leaks_when_serialised(before: str, after: str) -> None:
    """Whatever quotes and brackets a password holds, no part of it is left in repr, JSON, or either within either."""
    record = {"user": "bob", "password": f"{before}s3ntinel{after}s3ntinel", "price": 5.25}
    once = [
        repr(record),
        json.dumps(record),
        json.dumps(record, indent=2),
        f"login(password={record['password']!r}, n=1)",
    ]
    twice = [json.dumps(once[1]), repr(once[1]), repr([once[1]]), json.dumps({"body": once[1]})]
    nested = [repr({"token": {"a": [record]}}), json.dumps([{"secrets": [record["password"]]}])]
    for text in (*once, *twice, *nested):
        assert "s3ntinel" not in REDACTOR.text(text), text


@settings(deadline=None)
@given(st.text(alphabet="ab'\" ,;:=(){}[]\n@/<é", max_size=12), st.text(alphabet="ab'\" ,)}{\né", max_size=20))
def test_what_stands_around_a_secret_can_still_be_parsed(secret: str, note: str) -> None:
    """JSON stays JSON and a repr stays a literal, with nothing but the secret's value changed."""
    record = {"note": note, "password": secret + "x", "price": 5.25}
    expected = record | {"password": "[redacted:password]"}
    assert json.loads(REDACTOR.text(json.dumps(record))) == expected
    assert ast.literal_eval(REDACTOR.text(repr(record))) == expected


FRAGMENTS = st.sampled_from(
    [
        *("password", "'token'", '"secret"', "api", " ", "_", "key", "Authorization", "cookie", "auth", "--", "<", ">"),
        *(": ", "=", ":", ", ", "'", '"', "\\", "\\'", '\\"', "\\n", "\n", "(", ")", "[", "]", "{", "}", "&", ";", "|"),
        *("a", "None", "5", "Bearer abc12345678", "Basic YTpi", "Digest ", "://", "u:p@", "@", JWT, "4111111111111111"),
        *(" 4111 1111 1111 1111", ".", "[redacted:card]", "[redacted:", "-----BEGIN PRIVATE KEY-----", "é", "\0", "↴"),
    ]
)
TANGLED = st.lists(FRAGMENTS, max_size=14).map("".join)


@settings(max_examples=500, deadline=None)
@given(TANGLED)
def test_screening_twice_changes_nothing_more(text: str) -> None:
    """However keys, quotes, secrets and markers are tangled, a screened text is left as it is."""
    once = REDACTOR.text(text)
    assert REDACTOR.text(once) == once


# what the reach of some rule ends at, a little less and a little more: of names, of blanks, of URLs, of pairs
FAR = st.sampled_from(
    [
        *("a" * number for number in (63, 64, 65, 130)),
        *("b" * number for number in (199, 201, 255, 256, 257)),
        *("c." * number for number in (500, 505, 511, 512)),
        *("d" * number for number in (1000, 1001, 1010, 1023, 1024)),
        *("e " * 2045, "f" * 4090, "@" * 9, "@x" * 10, "p@" * 30, "@" + "g" * 250, " " * 64, " " * 200),
        *(
            "://a:",
            "://b:",
            "h://c:",
            "token=" + "z" * 900,
            "&token=" + "q" * 300 + "&",
            "&y",
            "<password ",
            "('token', '",
        ),
    ]
)
OF_URLS = st.sampled_from(
    [
        "://a:",
        "://b:x",
        "@",
        "p@" * 30,
        "p" * 255 + "@",
        "p" * 257 + "@",
        "p" * 990,
        "token=q&",
        "token=" + "q" * 900,
        " ",
    ]
)
FAR_REACHING = st.lists(FRAGMENTS | FAR, max_size=24).map("".join) | st.lists(OF_URLS, max_size=40).map("".join)


@settings(max_examples=500, deadline=None)
@given(FAR_REACHING)
def test_screening_twice_changes_nothing_more_however_far_a_rule_reaches(text: str) -> None:
    """What is replaced brings more into reach: that goes the first time too, wherever each reach ends."""
    once = REDACTOR.text(text)
    assert REDACTOR.text(once) == once


@pytest.mark.parametrize(
    "text, expected",
    [
        ("https://bob:" + "p@" * 100 + "host/", "https://bob:[redacted:url-password]@host/"),
        ("https://bob:" + ("p" * 250 + "@") * 40 + "host/", "https://bob:[redacted:url-password]@host/"),
        ("https://bob:" + "p@" * 10 + "p" * 257 + "@x", "https://bob:[redacted:url-password]@" + "p" * 257 + "@x"),
        ("".join(f"://{n}:{'p' * 990}" for n in range(30)) + "@h", "://0:[redacted:url-password]@h"),
        ("".join(f"://{n}:token={'p' * 990}&" for n in range(30)) + "@h", "://0:token=[redacted:token]"),
        ("'token'=5\n'token'=6\n", "'token'='[redacted:token]'='[redacted:token]'\n"),  # as of strings on two lines
    ],
    ids=["many @", "far apart", "out of reach", "in one another", "with keys", "strings that come into being"],
)
def test_what_comes_into_reach_goes_the_first_time(text: str, expected: str) -> None:
    """A password goes up to the last @ of its URL, however many there are, and whatever its URL is part of."""
    assert REDACTOR.text(text) == expected
    assert REDACTOR.text(expected) == expected


def test_a_text_that_never_settles_goes_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where replacing brings more to light for longer than is waited for, nothing of it may stay."""
    monkeypatch.setattr(redaction, "_PASSES", 1)
    assert REDACTOR.text("password=hunter2 x") == "password=[redacted:password] x"
    unsettled = REDACTOR.texts(["fine", "amqp://bob:hunter2@h x"])
    assert unsettled == ["fine", "[redacted:unsettled]"]
    assert REDACTOR.texts(unsettled) is unsettled


@settings(max_examples=500, deadline=None)
@given(TANGLED | FAR_REACHING)
def test_values_that_are_plainly_written_are_read_as_any_other(text: str) -> None:
    """The expression for plain values only saves time: without it, the same is redacted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redaction_text, "_PLAINLY", re.compile("(?!)"))
        by_hand = REDACTOR.text(text)
    assert REDACTOR.text(text) == by_hand


@settings(max_examples=300, deadline=None)
@given(st.lists(TANGLED, max_size=6))
def test_without_the_automaton_the_same_is_found(texts: list[str]) -> None:
    """The search in plain Python gives the same texts as the package, and one pass the same as line by line."""
    with pytest.MonkeyPatch.context() as patch:
        plain = without_automaton(patch)
    screened = REDACTOR.texts(texts)
    assert plain.texts(texts) == screened
    assert [REDACTOR.text(text) for text in texts] == screened


def test_the_plain_search_covers_every_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package, the examples of all rules are found as well."""
    plain = without_automaton(monkeypatch)
    examples = SERIALISED | BY_FORM | CARDS
    assert plain.texts(list(examples)) == list(examples.values())
    harmless = [*HARMLESS, *NO_CARDS]
    assert plain.texts(harmless) is harmless


def test_no_literal_is_in_words_that_are_common() -> None:
    """A text with one in it is met with all rules, which takes longer than all the rest of a trace's screening."""
    words = "weighs laughs highs passed author possess impassioned through basis cards ghost"
    assert [word for word in words.split() if REDACTOR._finder.starts(f"it {word} 183.52, {word}; {word}_5")] == []


def test_every_literal_has_a_stem_and_every_stem_a_literal() -> None:
    """What is looked for in a short text first leaves out nothing that the rules would find."""
    literals = [*redaction_literals._frequent_literals(), *redaction_literals._rare_literals()]
    stems = redaction_literals.STEMS
    assert [literal for literal in literals if not any(stem in literal for stem in stems)] == []
    assert [stem for stem in stems if not any(stem in literal for literal in literals)] == []


@pytest.mark.parametrize("unit", HOSTILE)
def test_a_megabyte_of_hostile_text_takes_bounded_time(unit: str) -> None:
    """No repetition of what a rule begins with makes it slower than in proportion (a quadratic one takes minutes)."""
    text = (unit * (1_000_000 // len(unit) + 1))[:1_000_000]
    started = time.perf_counter()
    screened = REDACTOR.texts([text])
    assert time.perf_counter() - started < 15
    assert len(screened) == 1


@pytest.mark.parametrize("unit", ["password=hunter2 ", "'token': 'hunter2', ", "&apiKey=hunter2&page=3"])
def test_a_key_with_a_plain_value_takes_few_steps(unit: str) -> None:
    """A text may have a million of them. Counted in calls, of which reading a value by hand takes a hundred."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    text = unit * 2000
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        screened = REDACTOR.texts([text])
    finally:
        sys.setprofile(before)
    assert screened[0].count("[redacted:") == 2000
    assert calls < 2000 * 20


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit",
    [
        *(
            "password=x ",
            "'token': 'x', ",
            "cookie:",
            "auth:",
            "token_count:",
            "token=a(",
            "'token': '\\\\'",
            ":password>\n",
        ),
        *(
            "<password>x</password>",
            "('token', 'x'), ",
            "--token x ",
            "Authorization: Bearer a1b2c3d4\n",
            "Cookie: a=b\n",
        ),
        *("amqp://bob:hunter2@h ", "://a:b@", "://a:", "@", "://a:b" + "@" * 40, "4111 ", "4111 1111 1111 1111, ", "1"),
        *("eyJ", "eyJaaaaa.", "eyJaaaaa.aaaaa ", "ghp_", "Bearer ", "Bearer a1b2c3d4 ", "-----BEGIN "),
        *("-----BEGIN PRIVATE KEY-----\n", "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"),
    ],
)
def test_time_grows_in_proportion_to_the_text(unit: str) -> None:
    """Eight times the text takes some eight times as long, of whatever a rule begins with, and not sixty-four."""
    redactor = Redactor(values={"own": "=x"})  # which may stand beside each marker
    took = []
    for size in (300_000, 2_400_000):  # the one in a window, the other in some
        text = unit * (size // len(unit))
        started = time.thread_time()
        redactor.texts([text])
        took.append(time.thread_time() - started)
    assert took[1] < 16 * max(took[0], 0.2)


@pytest.mark.parametrize("secret", ["password='hunter2' ", " 4111 1111 1111 1111 ", "amqp://bob:hunter2@h "])
def test_a_secret_is_found_in_ten_megabytes(secret: str) -> None:
    """Size is no hiding place: at the end of a very long text a secret goes, and the text around it stays."""
    filler = "↳ {'amount': 0.4111111111111111, 'currency': 'SEK'} " * 200_000
    screened = REDACTOR.text(filler + secret + "end")
    assert len(filler) > 10_000_000
    assert screened.startswith(filler)
    assert screened.endswith("end")
    assert "hunter2" not in screened[len(filler) :]
    assert "1111 1111" not in screened[len(filler) :]


@pytest.mark.parametrize(
    "text", ["password='\udc80hunter2'", "\udc80 token=hunter2", "токен password=hunter2", "\0pwd=hunter2"]
)
def test_odd_characters_do_not_hide_a_secret(text: str) -> None:
    """Lone surrogates, other scripts and NULs around a secret are no obstacle."""
    assert SECRET not in REDACTOR.text(text)


def test_own_keys_are_matched_by_whole_words() -> None:
    """Names of one's own count as they are and as the last words of longer ones, in any script and spelling."""
    own = Redactor(keys=["iban", "customer number", "Kundennummer", "пароль", "lösenord"])
    assert own.text("iban=SE35 x") == "iban=[redacted:iban] x"
    assert own.text("customerIban: 'SE35'") == "customerIban: '[redacted:iban]'"
    assert own.text("{'customer_number': 77}") == "{'customer_number': '[redacted:customer-number]'}"
    assert own.text("LÖSENORD=abc") == "LÖSENORD=[redacted:l-senord]"
    assert own.texts(["x", "пароль: abc"]) == ["x", "пароль: [redacted:custom]"]
    harmless = "urbane=1, ibanez=2, number=3"
    assert own.text(harmless) is harmless


def test_an_own_key_may_be_a_word_of_a_built_in_rule() -> None:
    """A name that is also the beginning of a built-in rule's secrets is matched as a key nevertheless."""
    own = Redactor(keys=["basic", "npm", "bearer"])
    assert (
        own.text("basic=5, npm=6, bearer=7") == "basic=[redacted:basic], npm=[redacted:npm], bearer=[redacted:bearer]"
    )


def test_a_marker_is_no_key_with_a_value() -> None:
    """Not even where its first word is a key of one's own."""
    own = Redactor(keys=["redacted"])
    once = own.text("[redacted:card] redacted: x, password=x")
    assert once == "[redacted:card] redacted: [redacted:redacted], password=[redacted:password]"
    assert own.text(once) == once


def test_own_patterns_are_named_by_their_rule() -> None:
    """A pattern of one's own is replaced everywhere, and its marker is not matched again."""
    own = Redactor(values={"Customer No": r"\bC-\d{6}\b", "anything after x": r"(?i)x\S+"})
    assert own.texts(["for C-123456: 5"]) == ["for [redacted:customer-no]: 5"]
    once = own.text("XYZ and x[redacted:card]z")
    assert once == "[redacted:anything-after-x] and [redacted:anything-after-x]"
    assert own.text(once) == once


@pytest.mark.parametrize(
    "text",
    ["token=5", "{'token': 'abc'}", "my_address_token=5", "4111111111111111", "password='public'", "password: demo-7"],
)
def test_the_safe_list_keeps_keys_and_values(text: str) -> None:
    """What the safe list names stays: a key's name, a value, either with wildcards, without regard to case."""
    safe = Redactor(safe=["Token", "*_address_token", "4111111111111111", "PUBLIC", "demo-?"])
    assert safe.text(text) is text
    assert (
        safe.text("access_token=5, password=private") == "access_token=[redacted:token], password=[redacted:password]"
    )


def test_without_defaults_only_own_rules_apply() -> None:
    """The built-in rules can be left out."""
    own = Redactor(keys=["iban"], defaults=False)
    assert own.text("password=a, iban=b, 4111111111111111") == "password=a, iban=[redacted:iban], 4111111111111111"


def test_a_custom_function_has_the_last_word() -> None:
    """The custom step sees every text, already screened, and what it gives is taken."""
    seen: list[str] = []

    def custom(text: str) -> str:
        seen.append(text)
        return text.replace("Bob", "B.")

    redactor = Redactor(custom=custom)
    lines = ["plain", "password=x of Bob"]
    assert redactor.texts(lines) == ["plain", "password=[redacted:password] of B."]
    assert seen == ["plain", "password=[redacted:password] of Bob"]


@pytest.mark.parametrize("outcome", [ValueError("boom hunter2"), RecursionError(), None, 5, b"bytes"])
def test_a_custom_function_that_fails_neither_hurts_nor_leaks(outcome: object) -> None:
    """A custom step that raises or returns no text leaves a marker in place of the whole text."""

    def custom(text: str) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert Redactor(custom=custom).texts(["for Bob"]) == [CUSTOM_FAILED] == ["[redacted:custom-failed]"]


def test_an_interrupt_in_a_custom_function_passes() -> None:
    """What is no Exception is not caught."""

    def custom(text: str) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Redactor(custom=custom).texts(["x"])


def test_structures_are_screened_by_key_and_by_value() -> None:
    """In meta and context secrets go by their key's name and by their form, at every depth."""
    meta = {
        "user": "bob",
        "dbPassword": "hunter2",
        "nested": [{"Authorization": "Bearer hunter2"}, "see amqp://u:hunter2@h", 4111111111111111],
        "token": {"a": 1},
        "tokens": 316,
        "secret": None,
        "has_password": True,
        JWT: 1,
    }
    assert REDACTOR.structure(meta) == {
        "user": "bob",
        "dbPassword": "[redacted:password]",
        "nested": [
            {"Authorization": "[redacted:authorization]"},
            "see amqp://u:[redacted:url-password]@h",
            "[redacted:card]",
        ],
        "token": "[redacted:token]",
        "tokens": 316,
        "secret": None,
        "has_password": True,
        "[redacted:jwt]": 1,
    }


@pytest.mark.parametrize(
    "given, expected",
    [
        (["curl", "--password", "hunter2", "-v"], ["curl", "--password", "[redacted:password]", "-v"]),
        (["--db-password=hunter2", "x"], ["--db-password=[redacted:password]", "x"]),
        ([["X-Api-Key", "hunter2"], ("Accept", "text")], [["X-Api-Key", "[redacted:api-key]"], ("Accept", "text")]),
        (["--token", "--verbose", "words"], ["--token", "--verbose", "words"]),
        (["--password", None, "words"], ["--password", None, "words"]),
        (["--tokens", "316"], ["--tokens", "316"]),
        (["name", "password", "age"], ["name", "password", "age"]),
    ],
)
def test_in_a_list_an_item_may_say_what_the_next_one_is(given: list[Any], expected: list[Any]) -> None:
    """Arguments of a command, and headers as pairs, as in a text: a list of names stays one."""
    assert REDACTOR.structure({"argv": given}) == {"argv": expected}
    assert (REDACTOR.structure(given) is given) == (given == expected)


def test_a_structure_without_secrets_is_the_same_object() -> None:
    """Nothing is copied where nothing matched, and screening a screened structure changes nothing."""
    meta = {"product": [9, 133554920, 0.25, None, {"key": "commodity/calculate", "ean": 4006381333931}], "password": ""}
    assert REDACTOR.structure(meta) is meta
    once = REDACTOR.structure({"password": "x", "a": ["token=5"]})
    assert REDACTOR.structure(once) is once


def test_a_structure_that_cannot_be_walked_leaves_a_marker() -> None:
    """A cycle (which JSON-able structures never have) neither raises nor lets anything through."""
    endless: list[Any] = ["password=hunter2"]
    endless.append(endless)
    assert REDACTOR.structure(endless) == "[redacted:failed]"


@pytest.mark.parametrize(
    "arguments", [{"values": {"broken": "("}}, {"values": {"odd": 5}}, {"keys": [5]}, {"safe": [""]}, {"keys": [None]}]
)
def test_wrong_arguments_are_refused_when_configuring(arguments: dict[str, Any]) -> None:
    """A pattern that does not compile, or an entry that is no text, says so at once."""
    with pytest.raises(UsageError):
        Redactor(**arguments)


SECRETS_AND_NOISE = st.sampled_from(
    [*SERIALISED, JWT, PEM, "4111 1111 1111 1111", "x\n4111111111111111", "\tpassword=hunter2", "fine", "9" * 16, ""]
)
STRUCTURES = st.recursive(
    SECRETS_AND_NOISE | st.text(max_size=20) | st.integers() | st.sampled_from([4111111111111111, None, True, 1.5]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["password", "apiKey", "key", "token\n"]) | st.text(max_size=8), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(STRUCTURES)
def test_the_look_at_a_whole_structure_misses_nothing(value: Any) -> None:
    """Where one look at all of it finds nothing, neither does a look at each member."""
    if REDACTOR._is_clean(value):
        assert REDACTOR._structure(value) is value
