"""Personal data and secrets leave a text; everything else stays as it was."""

from __future__ import annotations

import base64
import json
import re
import sys
import time
import types
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.intake.redacting import redact_row
from rlhf_loop.feedback.privacy.folded_text import FoldedText
from rlhf_loop.feedback.privacy.redaction import make_redactor

PATTERNS = make_redactor("patterns")
assert PATTERNS is not None

# Random characters, put together here so that nothing in this file has the form of a real credential.
RANDOM = "aB3dE5gH7jK9mN1pQ4sT6vW8yZ0cF2iL" * 4
JWT_HEAD = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "typ": "JWT"}).encode()).decode().rstrip("=")
JWT_BODY = base64.urlsafe_b64encode(json.dumps({"sub": "1234567890"}).encode()).decode().rstrip("=")
PEM = "-----BEGIN {0}PRIVATE KEY-----\n" + "MIIEvQIBADANBgkqhkiG9w0B/+aQ==\n" * 3

FOUND = [
    ("write to ann.lee+work@mail.example.co.uk, please", "write to [EMAIL], please"),
    ("<a_b@x-y.io>", "<[EMAIL]>"),
    ("müller@example.de", "[EMAIL]"),
    ("Call +49 30 1234567.", "Call [PHONE]."),
    ("+1 (212) 555-0123", "[PHONE]"),
    ("+14155550123", "[PHONE]"),
    ("dial 0049 30 1234 5678 now", "dial [PHONE] now"),
    ("(212) 555-0123", "[PHONE]"),
    ("212-555-0123", "[PHONE]"),
    ("212.555.0123", "[PHONE]"),
    ("06 12 34 56 78", "[PHONE]"),
    ("020 7946 0958", "[PHONE]"),
    ("0171/1234567", "[PHONE]"),
    ("phone: 5550123456", "phone: [PHONE]"),
    ("my number is 555 0123", "my number is [PHONE]"),
    ("paid with 4111 1111 1111 1111 today", "paid with [CREDIT_CARD] today"),
    ("4111111111111111,5555-5555-5555-4444", "[CREDIT_CARD],[CREDIT_CARD]"),
    ("378282246310005 and 3782 822463 10005", "[CREDIT_CARD] and [CREDIT_CARD]"),
    ("6011111111111117", "[CREDIT_CARD]"),
    ("4111 1111 1111 1111 12/27", "[CREDIT_CARD] 12/27"),
    ("IBAN DE89 3704 0044 0532 0130 00 IS MINE", "IBAN [IBAN] IS MINE"),
    ("GB82WEST12345698765432", "[IBAN]"),
    ("FR14 2004 1010 0505 0001 3M02 606", "[IBAN]"),
    ("from 93.184.216.34:8080", "from [IP_ADDRESS]:8080"),
    ("http://93.184.216.34/x", "http://[IP_ADDRESS]/x"),
    ("at 2a00:1450:4001:81b::200e now", "at [IP_ADDRESS] now"),
    ("SSN 078-05-1120", "SSN [US_SSN]"),
    ("my social security number is 078051120", "my social security number is [US_SSN]"),
    (f"OPENAI_API_KEY=sk-proj-{RANDOM}", "OPENAI_API_KEY=[SECRET]"),
    (f"sk-ant-api03-{RANDOM}", "[SECRET]"),
    (f"sk_live_{RANDOM[:24]}", "[SECRET]"),
    (f"ghp_{RANDOM[:36]}", "[SECRET]"),
    (f"github_pat_{RANDOM[:22]}_{RANDOM[:59]}", "[SECRET]"),
    (f"glpat-{RANDOM[:20]}", "[SECRET]"),
    ("AKIA" + "IOSFODNN7EXAMPL2", "[SECRET]"),
    (f"AIza{RANDOM[:35]}", "[SECRET]"),
    (f"xoxb-123456789012-{RANDOM[:24]}", "[SECRET]"),
    ("hf_" + "abcdefghijklmnopqrstuvwxyzABCDEFGH", "[SECRET]"),
    (f"npm_{RANDOM[:36]}", "[SECRET]"),
    (f"123456789:AA{RANDOM[:33]}", "[SECRET]"),
    (f"Bearer {JWT_HEAD}.{JWT_BODY}.{RANDOM[:43]}", "Bearer [SECRET]"),
    (f'aws_secret_access_key = "{RANDOM[:40]}"', 'aws_secret_access_key = "[SECRET]"'),
    (f"Authorization: Bearer {RANDOM[:32]}", "Authorization: Bearer [SECRET]"),
    ("postgresql://ann:correct-horse@db.example.org/x", "postgresql://[SECRET]@db.example.org/x"),
    (PEM.format("RSA ") + "-----END RSA PRIVATE KEY-----\nthat was it", "[PRIVATE_KEY]\nthat was it"),
    ("key: " + PEM.format(""), "key: [PRIVATE_KEY]"),
]  # fmt: skip

KEPT = [
    "In 2023 the company sold 135,000,000 units at $12.50 each.",
    "pi is 3.14159265358979, e is 2.718281828459045",
    "0.4111111111111111 is a decimal",
    "4111 1111 1111 1112",  # the check digit is wrong
    "0000 0000 0000 0000",
    "1234567890123456",
    "DE89 3704 0044 0532 0130 01",  # mod 97 is not 1
    "2023-10-15 12:30:45, 15.10.2023, 10/15/2023 10:00",
    "01.02.2023 10:00",
    "2023-10-15 1234567",
    "version 1.2.3.4 and Chrome/120.0.6099.109",
    "127.0.0.1, 192.168.1.1, 10.0.0.1, 0.0.0.0, 255.255.255.0, 8.8.8.8, 192.0.2.7",
    "std::vector<int> a::b; 12:34:56; 00:1a:2b:3c:4d:5e; ::1; fe80::1; 2001:db8::1",
    "git@github.com:owner/name.git",
    "icon@2x.png, @decorator, foo@bar, user@localhost, a @ b",
    "ISBN 978-3-16-148410-0",
    "order 10000000, id 9007199254740993, timestamp 1700000000000",
    "3 + 4 = 7; 100 200 300 4000; 1-2-3-4-5-6-7-8",
    "arXiv 2210.10760, RFC 9562, ISO 13616-1:2020",
    "d41d8cd98f00b204e9800998ecf8427e da39a3ee5e6b4b0d3255bfef95601890afd80709",
    "550e8400-e29b-41d4-a716-446655440000",
    "sk-learn-is-a-name-that-people-write-often",
    "ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "token = get_the_next_token_from_the_stream_v2(reader)",
    "api_key = your_api_key_goes_here_please",
    "the password is a long story in the year 2023",
    "A file starts with -----BEGIN PRIVATE KEY----- and ends with a similar line.",
    "-----BEGIN PUBLIC KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\n-----END PUBLIC KEY-----",
    "eyJust.a-word.with-dots-in-it",
    "000-12-3456 666-12-3456 900-12-3456 123-00-4567 123-45-0000",
    "3.14.159.26535 x 10^8, 1e10, 0x1F4, 12.5%",
    "https://docs.python.org/3/library/re.html#module-re",
    "https://example.org:8080/a/b?c=1",
    "",
]  # fmt: skip


AWS_KEY, AWS_SECRET = "AKIA" + "IOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYEXAMPLEKEY"  # those of its docs
MARK = "\ufe0f\u20e3"  # makes a keycap of a digit

CARDS = [
    "4111\u00a01111\u00a01111\u00a01111", "4111\u202f1111\u202f1111\u202f1111", "4111\u20071111\u20071111\u20071111",
    "4111.1111.1111.1111", "4111\u00b71111\u00b71111\u00b71111", "4111/1111/1111/1111", "4111_1111_1111_1111",
    "4111\n1111\n1111\n1111", "4111 1111\r\n1111 1111", "4111\t1111\t1111\t1111", "4111\u2028111111111111",
    "4111\u20111111\u20111111\u20111111", "4111\u20131111\u20131111\u20131111", "4111\u22121111\u22121111\u22121111",
    "4111 - 1111 - 1111 - 1111", "4111  1111  1111  1111", "4111-1111 1111.1111", "41111111 11111111",
    "41 11 11 11 11 11 11 11", "4111&nbsp;1111&nbsp;1111&nbsp;1111", r"4111 1111\n1111 1111",
    "4111\u200b1111\u200b1111\u200b1111", "4\u20601\u2060" + "11 1111 1111 1111", f"4{MARK}111 1111 1111 1111",
    "\uff14\uff11\uff11\uff11\u3000\uff11\uff11\uff11\uff11 1111 1111", "\u0664\u0661\u0661\u0661 1111 1111 1111",
    "\u096a111111111111111", "\U0001d7d2111111111111111", "3782\u00a0822463\u00a010005", "3782.822463.10005",
    "4111\u28001111\u28001111\u28001111", "41111111 1111 1111", "4111\u20601111 1111 1111",
    "2200 0000 0000 0053", "6304\u00a00000\u00a00000\u00a00000",
]  # fmt: skip
IBANS = [
    "de89 3704 0044 0532 0130 00", "de89370400440532013000", "De89 3704 0044 0532 0130 00",
    "DE89\u00a03704\u00a00044\u00a00532\u00a00130\u00a000", "DE89.3704.0044.0532.0130.00",
    "DE89-3704-0044-0532-0130-00", "DE89 3704 0044\n0532 0130 00", "gb82west12345698765432",
    "fr14 2004 1010 0505 0001 3m02 606", "\uff24\uff258\uff19 3704 0044 0532 0130 00",
    "DE89\u200b3704 0044 0532 0130 00",
    "MN121234123456789123", "HN88CABF00000000000250005469",
]  # fmt: skip
MAILS = [
    "ann@b\u00fccher.example", "\u043f\u043e\u0447\u0442\u0430@\u043f\u0440\u0438\u043c\u0435\u0440.\u0440\u0444",
    "\u7528\u6237@\u4f8b\u5b50.\u516c\u53f8", "ann@xn--bcher-kva.example", "ann@example.xn--p1ai",
    "mu\u0308ller@example.de", "\uff41\uff4e\uff4e\uff20\uff45\uff58.org", "ann\u200b@example.org",
    "ann@example\u200b.org", "ann@example\u3002com", "ann%40example.org", "ann [at] example [dot] org",
    "ann{at}example{dot}org", "ann<at>example.org",
    "ann(at)example.org", '"ann lee"@example.org', "ann.o'hara@example.org", "ann@[93.184.216.34]",
    "\u0909\u092a\u092f\u094b\u0917@\u0909\u0926\u093e\u0939\u0930\u0923.\u092d\u093e\u0930\u0924",
]  # fmt: skip
SSNS = [
    "ssn 123 45 6789", "SSN: 123.45.6789", "Ssn 123456789", "ssn#123456789", "social security no. 123 45 6789",
    "SOCIAL SECURITY NUMBER: 123-45-6789", "my ssn is 123\u00a045\u00a06789", "ssn\n123 45 6789",
    "SSN 123\u201345\u20136789", "123\u201345\u20136789", "123\u201145\u20116789", "123 - 45 - 6789",
    "ssn: 123/45/6789",
    "ssn \uff11\uff12\uff13-45-6789", "itin 912-70-1234", "TIN 912-70-1234", "ss no 123 45 6789", "S.S.N. 123 45 6789",
    "social_security_number: 123456789", "my social is 123456789",
]  # fmt: skip
BEFORE_AWS_SECRET = [
    "aws_secret_access_key = ", "AWS_SECRET_ACCESS_KEY=", "aws_secret_access_key: ", '"SecretAccessKey": "',
    "secretAccessKey: '", "AWS secret: ", "aws secret access key is ", "Secret access key\t", "awsSecretKey: ",
    "aws_secret_access_key\n", "<SecretAccessKey>",
]  # fmt: skip
TOKEN, SESSION = f"rlhf-{RANDOM[:43]}", "token-0123456789ab.1760000000." + "0123456789abcdef" * 4

VARIANTS = [
    *((f"pay {card} now", "pay [CREDIT_CARD] now") for card in CARDS),
    *((f"to {iban} now", "to [IBAN] now") for iban in IBANS),
    *((f"<{mail}>, please", "<[EMAIL]>, please") for mail in MAILS),
    *((ssn, re.split("[0-9\uff11]", ssn)[0] + "[US_SSN]") for ssn in SSNS),
    *((before + AWS_SECRET, before + "[SECRET]") for before in BEFORE_AWS_SECRET),
    (f"{AWS_KEY},{AWS_SECRET}", "[SECRET],[SECRET]"),
    (f"Access key ID,Secret access key\n{AWS_KEY},{AWS_SECRET}", "Access key ID,Secret access key\n[SECRET],[SECRET]"),
    (f"my token is {TOKEN}.", "my token is [SECRET]."),
    (f"rlhf_loop_session={SESSION}; Path=/", "rlhf_loop_session=[SECRET]; Path=/"),
    *((f"{{{mail}}}", "{[EMAIL]}") for mail in (r"ann\u0040example.org", r"\\u0430nn@\\u043f\\u0440.\\u0440\\u0444")),
    ("ann&#64;example&#x2e;org &amp; %2B49%2030%201234567 %C3%A9", "[EMAIL] &amp; [PHONE] %C3%A9"),
    ("123 45 6789 is my SSN", "[US_SSN] is my SSN"),
    ("card_4111111111111111_x", "card_[CREDIT_CARD]_x"),
    ("12 4111 1111 1111 1111 99", "12 [CREDIT_CARD] 99"),
    ("password: Tr0ub4dor&3, sorry", "password: [SECRET], sorry"),
    ("my password is correct7horse.", "my password is [SECRET]."),
    ("PWD=hunter22", "PWD=[SECRET]"),
    (f"Authorization: Basic {base64.b64encode(b'ann:secret').decode()}", "Authorization: Basic [SECRET]"),
    (f"clientSecret: '{RANDOM[:32]}'", "clientSecret: '[SECRET]'"),
    (f"nvapi-{RANDOM[:64]}", "[SECRET]"),
    ("call \uff0b\uff14\uff19 30 1234567", "call [PHONE]"),
    ("+49\u200b30\u200b1234567 or +49\u201330\u20131234567", "[PHONE] or [PHONE]"),
    ("\u0660\u0666 \u0661\u0662 34 56 78", "[PHONE]"),
    ("\uff19\uff13.184.216.34", "[IP_ADDRESS]"),
    ("\u200be\u0301 \u2013 ann@example.org \u2013 e\u0301\u200b", "\u200be\u0301 \u2013 [EMAIL] \u2013 e\u0301\u200b"),
]  # fmt: skip

KEPT += [
    "x\u00b2\u2070\u00b2\u00b3 + 4111111111111112, E=mc\u00b2",
    "\u0928\u092e\u0938\u094d\u0924\u0947, sch\u00f6n \u2014 1\ufe0f\u20e3 eins \U0001f469\u200d\U0001f467",
    "de89 is a number, and in 2023 people were at15 places of the world and in more of them than ever before",
    "no15 to se24 the quick brown fox jumped over lazy dogs again and again",
    "password = get_password2() or ${PASSWORD1} or os.environ['PASS1']",
    "use rlhf-loop-watch-the-folder-of-all-the-runs-that-are-there-now-please",
    "Basic education is important, basic information too",
    "the secret is/in/a/path/of/forty/letters/and/more/of/them",
    "2023-10-15\n2023-10-16\n2023-10-17\n1234 5678\n2345 6789\n3456 7890",
    "10 20 30 40 50 60 70 80 90 100 200 300 400 500 600 700 800",
    "look at example dot org (at last)",
    "the commit of aws e3b0c44298fc1c149afbf4c8996fb92427ae41e4",  # a hash: small letters alone
    "\u200b\u200b", "a\u200bb",
    "tin cans of 1912, at 123-45-67", "the function of x{at} and <at>", "123 45 6789 is a sum",
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), VARIANTS)
def test_however_it_is_written_it_is_replaced_and_the_rest_stays(text: str, expected: str) -> None:
    redacted, counts = PATTERNS.redact(text)
    assert redacted == expected
    assert sum(counts.values()) == expected.count("[")
    assert PATTERNS.redact(redacted) == (redacted, {})


@given(st.text(max_size=40) | st.text(alphabet="a1\u200b\u0308\uff11 \u00a0\u2013\\u04%&#;", max_size=20))
def test_a_folded_text_is_the_text_until_something_is_put_into_it(text: str) -> None:
    assert str(FoldedText(text)) == text


@given(st.lists(st.text(alphabet="a1\u200b\u0308\uff11\u2013", max_size=4), min_size=3, max_size=3))
def test_what_stands_around_a_finding_is_left_as_it_was(parts: list[str]) -> None:
    before, between, after = (f"{part}x" for part in parts)
    text = FoldedText(f"{before}#{between}#x{after}")
    places = [(place, place + 1) for place, sign in enumerate(text.seen) if sign == "#"]
    text.put(places, "[HERE]")
    marks = "".join(sign for sign in between if sign in "\u200b\u0308")
    assert str(text).replace("[HERE]", "") in (f"{before}{between}x{after}", f"{before}{between.lstrip(marks)}x{after}")
    assert str(text).count("[HERE]") == 2


@pytest.mark.parametrize(("text", "expected"), FOUND, ids=[expected[:30] for _, expected in FOUND])
def test_personal_data_and_secrets_are_replaced(text: str, expected: str) -> None:
    redacted, counts = PATTERNS.redact(text)
    assert redacted == expected
    assert counts == {name: expected.count(f"[{name}]") for name in counts}
    assert sum(counts.values()) == expected.count("[")


@pytest.mark.parametrize("known", ["None", "****************ABCD"])
def test_what_is_typed_where_aws_asks_for_its_secret_is_replaced(known: str) -> None:
    asked = f"AWS Secret Access Key [{known}]: "
    assert PATTERNS.redact(asked + AWS_SECRET) == (f"{asked}[SECRET]", {"SECRET": 1})


@pytest.mark.parametrize("text", KEPT, ids=[text[:30] for text in KEPT])
def test_what_only_looks_like_personal_data_stays(text: str) -> None:
    assert PATTERNS.redact(text) == (text, {})


PIECES = st.sampled_from(
    [text for text, _ in FOUND] + KEPT + [" ", ",", "-", "+", "1", "12", "a", "@", ":", "//", "[", "]", "\n", "[EMAIL]"]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(PIECES, max_size=6).map("".join) | st.text(alphabet="0123456789 -+()./@:ab.DE[]", max_size=60))
def test_redacting_twice_is_redacting_once(text: str) -> None:
    once, _ = PATTERNS.redact(text)
    assert PATTERNS.redact(once) == (once, {})


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(alphabet="abcdefghijklmnopqrstuvwxyzABÄÖ.,;:!?'\"()", max_size=14), max_size=30).map(" ".join))
def test_texts_without_digits_signs_or_long_words_are_untouched(text: str) -> None:
    assert PATTERNS.redact(text) == (text, {})


HOSTILE = [
    "a", "1", "1 ", "a@", "sk-", "sk-a-", "eyJ", "DE12", "1.1.", "1:", "token=", "://a:", "+1", "phone ", "xoxa-",
    "-----BEGIN PRIVATE KEY-----", "a.b-", "(0", "api key ", "11 ", "41\n", "DE12 ", "de12 ", "ssn ", "aws_secret ",
    "[SECRET]", "password=", "password is a1", "a[at]", "a(dot)", "\"a\"@", "\u200b", "\u0308", "\uff11 ", "\u00e9@",
]  # fmt: skip


@pytest.mark.parametrize("part", HOSTILE)
def test_hostile_texts_take_time_linear_in_their_length(part: str) -> None:
    text = part * (200_000 // len(part)) + " 1@"
    started = time.process_time()
    PATTERNS.redact(text)
    assert time.process_time() - started < 3  # a fraction of a second; quadratic time would be minutes


def test_none_redacts_nothing_and_unknown_names_are_refused() -> None:
    assert make_redactor("none") is None
    with pytest.raises(UserError, match="patterns, presidio or none"):
        make_redactor("magic")  # type: ignore[arg-type]


def test_presidio_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(UserError, match=r"pip install 'rlhf-loop\[presidio\]'"):
        make_redactor("presidio")


def test_presidio_without_its_language_model_is_an_error_with_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    def engine() -> None:
        raise SystemExit("no network to fetch it")  # as spaCy's download ends

    monkeypatch.setitem(sys.modules, "presidio_analyzer", types.SimpleNamespace(AnalyzerEngine=engine))
    with pytest.raises(UserError, match=r"no network to fetch it.* spacy download en_core_web_lg"):
        make_redactor("presidio")


def test_the_real_presidio_finds_names_of_a_small_language_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("presidio_analyzer")
    import spacy

    language = spacy.blank("en")
    language.add_pipe("entity_ruler").add_patterns(
        [{"label": "PERSON", "pattern": "Jane Miller"}, {"label": "GPE", "pattern": "Berlin"}]
    )
    language.to_disk(tmp_path / "en_core_web_lg")
    monkeypatch.chdir(tmp_path)  # Presidio takes a folder of the model's name for the model
    redactor = make_redactor("presidio")
    assert redactor is not None
    text = "Jane Miller in Berlin, jane@example.org, card 4111 1111 1111 1111"
    assert redactor.redact(text) == (
        "[PERSON] in Berlin, [EMAIL], card [CREDIT_CARD]",
        {"EMAIL": 1, "CREDIT_CARD": 1, "PERSON": 1},
    )


def test_presidio_finds_names_beside_the_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine:
        def analyze(self, text: str, entities: list[str], language: str) -> list[types.SimpleNamespace]:
            assert language == "en"
            assert "PERSON" in entities
            spans = [("Ann Lee", "PERSON", 0.85), ("Ann", "PERSON", 0.6), ("EMAIL", "PERSON", 0.9)]
            return [
                types.SimpleNamespace(start=start, end=start + len(word), entity_type=kind, score=score)
                for word, kind, score in spans
                if (start := text.find(word)) >= 0
            ]

    monkeypatch.setitem(sys.modules, "presidio_analyzer", types.SimpleNamespace(AnalyzerEngine=Engine))
    redactor = make_redactor("presidio")
    assert redactor is not None
    redacted, counts = redactor.redact("Ann Lee writes from ann@example.org")
    assert redacted == "[PERSON] writes from [EMAIL]"
    assert counts == {"EMAIL": 1, "PERSON": 1}
    assert redactor.redact(redacted) == (redacted, {})


def test_a_text_that_could_be_read_as_a_time_is_redacted_all_the_same() -> None:
    row = {"prompt": "4111111111111111", "chosen": "ann@example.org, 1 Jan 2020 10:00:00 +0000", "b": "+491701234567"}
    redacted, found = redact_row(row, PATTERNS)
    assert (redacted["prompt"], redacted["b"]) == ("[CREDIT_CARD]", "[PHONE]")
    assert "ann@" not in redacted["chosen"]
    assert found == {"CREDIT_CARD": 1, "EMAIL": 1, "PHONE": 1}
