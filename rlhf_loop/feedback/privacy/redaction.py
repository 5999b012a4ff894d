"""Personal data and secrets are taken out of texts before they are stored.

`make_redactor("patterns").redact(text)` replaces what it finds by `[EMAIL]`, `[PHONE]`, `[CREDIT_CARD]`, `[IBAN]`,
`[IP_ADDRESS]`, `[US_SSN]`, `[SECRET]` and `[PRIVATE_KEY]`. Checksums decide where there are any (Luhn, mod 97), so that
ordinary numbers stay. Digits, dashes and spaces of any script count, and invisible signs do not (`folded_text`). Short
texts without any of it take some microseconds.

What it does not find: names, addresses, numbers that only their meaning makes personal, passwords of everyday words.
`presidio` also finds names, with a language model, at a hundredth of the speed.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import ipaddress
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from stdnum import luhn

from rlhf_loop.errors import UserError
from rlhf_loop.feedback.privacy import redaction_patterns as patterns
from rlhf_loop.feedback.privacy.folded_text import FoldedText
from rlhf_loop.recipe import RedactorName


class Redactor(Protocol):
    """What takes personal data out of a text."""

    def redact(self, text: str) -> tuple[str, dict[str, int]]:
        """The text with placeholders such as `[EMAIL]`, and how many of each (`{"EMAIL": 1}`). Doing it again changes
        nothing."""


def make_redactor(kind: RedactorName) -> Redactor | None:
    """The redactor that the recipe names; None for `none`.

    Raises `UserError` for `presidio` where it is not installed.
    """
    if kind == "none":
        return None
    if kind == "patterns":
        return PatternRedactor()
    if kind == "presidio":
        return PresidioRedactor()
    raise UserError(f"annotation.redact: there is no redactor `{kind}`; give patterns, presidio or none")


class PatternRedactor:
    """Finds personal data and secrets by their form and their checksums."""

    def redact(self, text: str) -> tuple[str, dict[str, int]]:
        """See `Redactor.redact`. Time is linear in the text, whatever is in it."""
        folded = FoldedText(text)
        if not _may_hold(folded.seen):
            return text, {}
        found: Counter[str] = Counter()
        while True:  # what stood beside something that went may be found now: until nothing is
            before = sum(found.values())
            _once(folded, found)
            if sum(found.values()) == before:
                return (str(folded) if found else text), dict(found)


class PresidioRedactor:
    """The patterns, and then the names of people (and what else Microsoft Presidio knows) in English texts."""

    def __init__(self) -> None:
        try:
            presidio = importlib.import_module("presidio_analyzer")
        except ImportError:
            raise UserError(
                "annotation.redact: presidio is not installed: pip install 'rlhf-loop[presidio]' and "
                "python -m spacy download en_core_web_lg, or set `annotation.redact: patterns`"
            ) from None
        try:
            self._analyzer: Any = presidio.AnalyzerEngine()
        except (Exception, SystemExit) as error:  # it fetches the language model if that is not there
            raise UserError(
                f"annotation.redact: presidio cannot load its language model ({' '.join(str(error).split())[:200]}); "
                "python -m spacy download en_core_web_lg, or set `annotation.redact: patterns`"
            ) from error
        self._patterns = PatternRedactor()

    def redact(self, text: str) -> tuple[str, dict[str, int]]:
        """See `Redactor.redact`."""
        text, counts = self._patterns.redact(text)
        found = Counter(counts)
        while True:
            spans = self._spans(text)
            for start, end, name in spans:
                text = f"{text[:start]}[{name}]{text[end:]}"
                found[name] += 1
            if not spans:
                return text, dict(found)

    def _spans(self, text: str) -> list[tuple[int, int, str]]:
        """What to replace, the last first; none overlaps another or a placeholder."""
        taken = [match.span() for match in re.finditer(r"\[[A-Z_]+\]", text)]
        results = self._analyzer.analyze(text=text, entities=list(PRESIDIO_ENTITIES), language="en")
        spans = []
        for result in sorted(results, key=lambda r: (-r.score, r.start - r.end, r.start)):
            if all(result.end <= start or result.start >= end for start, end in taken):
                taken.append((result.start, result.end))
                spans.append((result.start, result.end, PRESIDIO_ENTITIES[result.entity_type]))
        return sorted(spans, reverse=True)


PRESIDIO_ENTITIES = {
    "PERSON": "PERSON",
    "EMAIL_ADDRESS": "EMAIL",
    "PHONE_NUMBER": "PHONE",
    "CREDIT_CARD": "CREDIT_CARD",
    "IBAN_CODE": "IBAN",
    "IP_ADDRESS": "IP_ADDRESS",
    "US_SSN": "US_SSN",
    "US_PASSPORT": "US_PASSPORT",
    "US_DRIVER_LICENSE": "US_DRIVER_LICENSE",
    "UK_NHS": "UK_NHS",
    "MEDICAL_LICENSE": "MEDICAL_LICENSE",
}
"""Presidio's name of each kind that is looked for, and the placeholder. Places, dates and links are left: taking them
out would leave little to learn from."""


def _may_hold(text: str) -> bool:
    """The cheap look: digits, an @ or a long word are in everything that is looked for."""
    signs = patterns.digit_or_at(text) is not None or "-----BEGIN" in text
    return signs or patterns.long_word(text) is not None or patterns.at(text) is not None


def _once(text: FoldedText, found: Counter[str]) -> None:
    """One pass. Each pattern stands behind a cheaper look for what it cannot do without."""

    def put(name: str, pattern: re.Pattern[str], spans: _Spans) -> None:
        places = [span for match in pattern.finditer(text.seen) for span in spans(match)]
        if places:
            text.put(places, f"[{name}]")
            found[name] += len(places)

    if "PRIVATE KEY" in text.seen or "Private-Lines" in text.seen:
        put("PRIVATE_KEY", patterns.KEY_BLOCK, _whole())
    if patterns.long_word(text.seen):
        if any(prefix in text.seen for prefix in patterns.PREFIXES):
            put("SECRET", patterns.SECRET, _whole(_is_secret))
        if patterns.name_of_secret(text.seen):
            put("SECRET", patterns.NAMED_SECRET, _whole(_is_random))
            put("SECRET", patterns.AWS_SECRET, _whole(_is_aws_secret))
            put("SECRET", patterns.BASIC_LOGIN, _whole(_is_login))
    if patterns.name_of_password(text.seen):
        put("SECRET", patterns.NAMED_PASSWORD, _whole())
    if patterns.at(text.seen):
        put("SECRET", patterns.URL_LOGIN, _whole())
        put("EMAIL", patterns.EMAIL, _whole(_is_email))
    if patterns.dotted(text.seen):
        put("IP_ADDRESS", patterns.IPV4, _whole(_is_public_address))
    if text.seen.count(":") > 1:
        put("IP_ADDRESS", patterns.IPV6, _whole(_is_public_address))
    if patterns.country(text.seen):
        put("IBAN", patterns.IBAN, _ibans)
    if patterns.seven_digits(text.seen):
        if patterns.fourteen_digits(text.seen):
            put("CREDIT_CARD", patterns.CARD, _cards)
        lower = text.seen.lower()
        if patterns.hyphens(text.seen) or any(word in lower for word in patterns.SSN_WORDS):
            put("US_SSN", patterns.SSN, _whole())
        put("PHONE", patterns.PHONE, _whole(_is_phone))
        if any(word in lower for word in patterns.PHONE_WORDS):
            put("PHONE", patterns.NAMED_PHONE, _whole(_is_phone))


_Spans = Callable[[re.Match[str]], Iterator[tuple[int, int]]]


def _whole(check: Callable[[re.Match[str]], bool] | None = None) -> _Spans:
    """All of a match after what its group `before` caught, where it passes the check."""

    def spans(match: re.Match[str]) -> Iterator[tuple[int, int]]:
        if check is None or check(match):
            before = match.groupdict().get("before")
            yield match.start() + len(before or ""), match.end()

    return spans


def _ibans(match: re.Match[str]) -> Iterator[tuple[int, int]]:
    """The country says how long the IBAN is, and what in it are digits (ISO 13616); what follows it stays."""
    from stdnum import iban  # reads the registry's table of countries

    text, number = match.group(), ""
    for end, character in enumerate(text, 1):
        number += character if character.isalnum() else ""
        if not 15 <= len(number) <= 34 or not character.isalnum():
            continue
        ends = match.string[match.start() + end : match.start() + end + 1]
        if not (ends.isalnum() or ends == "_") and iban.is_valid(number, check_country=False):
            yield match.start(), match.start() + end
            return


def _cards(match: re.Match[str]) -> Iterator[tuple[int, int]]:
    """The runs of groups in a row of groups of digits that are a card's number, by issuer, length and check digit."""
    groups = [(m.group(), m.start(), m.end()) for m in re.finditer("[0-9]+", match.group())]
    first = 0
    while first < len(groups):
        for last in range(first, min(first + 8, len(groups))):
            parts = [digits for digits, _, _ in groups[first : last + 1]]
            if _is_card(parts):
                yield match.start() + groups[first][1], match.start() + groups[last][2]
                first = last
                break
        first += 1


def _is_card(groups: list[str]) -> bool:
    sizes = tuple(map(len, groups))
    number = "".join(groups)
    return (
        15 <= len(number) + (len(number) == 14) <= 19
        and (
            set(sizes[:-1]) in (set(), {4}, {2})
            or all(size % 4 == 0 for size in sizes)
            or sizes in patterns.CARD_GROUPS
        )
        and patterns.ISSUER.fullmatch(number) is not None
        and len(set(number)) > 1
        and luhn.is_valid(number)
    )


def _is_secret(match: re.Match[str]) -> bool:
    text = match.group()
    if text.startswith("eyJ"):
        return _is_token(text)
    if text.startswith(("sk-", "xox")) and not re.search(r"[0-9]", text):  # sk-learn-style-names-of-things
        return False
    if text.startswith("rlhf-") and not (re.search(r"[0-9]", text) and re.search(r"[A-Z]", text)):
        return False
    return len(set(text)) >= 10  # not ghp_xxxxxxxxxxxxxxxx


def _is_token(text: str) -> bool:
    """Whether the first part of a JSON Web Token (RFC 7519) names an algorithm."""
    head = text.partition(".")[0]
    try:
        return "alg" in json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except (binascii.Error, ValueError, TypeError):
        return False


def _is_random(match: re.Match[str]) -> bool:
    """Letters and digits mixed, at least 3.2 bits a character: no word, path, date or placeholder."""
    value = match.group("value")
    if not (re.search(r"[0-9]", value) and re.search(r"[A-Za-z]", value)):
        return False
    shares = [count / len(value) for count in Counter(value).values()]
    switches = len(re.findall(r"[A-Za-z](?=[0-9])|[0-9](?=[A-Za-z])", value))  # model_v2 has one, random text many
    return switches >= 4 and -sum(share * math.log2(share) for share in shares) >= 3.2


def _is_aws_secret(match: re.Match[str]) -> bool:
    """Capital and small letters, and digits or signs of base64: no word, no hash, no path."""
    value = match.group("value")
    return all(re.search(kind, value) for kind in ("[a-z]", "[A-Z]", "[0-9+/]")) and len(set(value)) >= 15


def _is_login(match: re.Match[str]) -> bool:
    """Whether it is NAME:PASSWORD in base64 (RFC 7617)."""
    try:
        text = base64.b64decode(match.group("value"), validate=True).decode()
    except ValueError:
        return False
    return ":" in text and text.isprintable()


def _is_email(match: re.Match[str]) -> bool:
    local, _, domain = match.group().rpartition("@")
    if domain.rpartition(".")[2].lower() in {"png", "jpg", "jpeg", "gif", "svg", "webp", "avif"}:  # icon@2x.png
        return False
    return not (local == "git" and match.string[match.end() : match.end() + 1] == ":")  # git@github.com:owner/name


def _is_public_address(match: re.Match[str]) -> bool:
    """An address on the public internet: 127.0.0.1, 192.168.1.1 and documentation's addresses are nobody's.

    Four single digits are rather a version, a section or a well-known name server.
    """
    try:
        address = ipaddress.ip_address(match.group())
    except ValueError:
        return False
    if address.version == 6 and not 0x2000 <= int(address) >> 112 <= 0x3FFF:
        return False
    return address.is_global and len(match.group()) > 7


def _is_phone(match: re.Match[str]) -> bool:
    number = match.groupdict().get("number") or match.group()
    return 7 <= sum(character.isdigit() for character in number) <= 15 and not patterns.DATE.search(number)
