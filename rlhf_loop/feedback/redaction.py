"""Personal data and secrets are taken out of texts before they are stored.

`make_redactor("patterns").redact(text)` replaces what it finds by `[EMAIL]`, `[PHONE]`, `[CREDIT_CARD]`, `[IBAN]`,
`[IP_ADDRESS]`, `[US_SSN]`, `[SECRET]` and `[PRIVATE_KEY]`. Checksums decide where there are any (Luhn, mod 97), so that
ordinary numbers stay. Short texts without any of it take some microseconds.

What it does not find: names, addresses, numbers that only their meaning makes personal, digits of other scripts,
passwords of everyday words. `presidio` also finds names, with a language model, at a hundredth of the speed.
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
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Protocol

from rlhf_loop.errors import UserError

RedactorName = Literal["patterns", "presidio", "none"]


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
        if not _may_hold(text):
            return text, {}
        found: Counter[str] = Counter()
        while True:  # what stood beside something that went may be found now: until nothing is
            before = sum(found.values())
            text = _once(text, found)
            if sum(found.values()) == before:
                return text, dict(found)


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
    "PERSON": "PERSON", "EMAIL_ADDRESS": "EMAIL", "PHONE_NUMBER": "PHONE", "CREDIT_CARD": "CREDIT_CARD",
    "IBAN_CODE": "IBAN", "IP_ADDRESS": "IP_ADDRESS", "US_SSN": "US_SSN", "US_PASSPORT": "US_PASSPORT",
    "US_DRIVER_LICENSE": "US_DRIVER_LICENSE", "UK_NHS": "UK_NHS", "MEDICAL_LICENSE": "MEDICAL_LICENSE",
}  # fmt: skip
"""Presidio's name of each kind that is looked for, and the placeholder. Places, dates and links are left: taking them
out would leave little to learn from."""


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of ISO/IEC 7812-1."""
    doubled = [int(digit) for digit in digits]
    for place in range(len(doubled) - 2, -1, -2):
        doubled[place] = sum(divmod(2 * doubled[place], 10))
    return sum(doubled) % 10 == 0


def iban_is_valid(iban: str) -> bool:
    """Whether the country has IBANs of this length and the check digits are right (ISO 13616, ISO 7064 mod 97-10)."""
    if len(iban) != IBAN_LENGTHS.get(iban[:2]):
        return False
    moved = iban[4:] + iban[:4]
    return int("".join(str(int(character, 36)) for character in moved)) % 97 == 1


IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FK FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK",
        21: "CH CR HR LI LV", 22: "BG BH DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HU LB NI PL SV",
        29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip
"""Characters of an IBAN by country, from the SWIFT IBAN registry."""


def _may_hold(text: str) -> bool:
    """The cheap look: digits, an @ or a long word are in everything that is looked for."""
    return _DIGIT_OR_AT(text) is not None or "-----BEGIN" in text or _LONG_WORD(text) is not None


def _once(text: str, found: Counter[str]) -> str:
    """One pass. Each pattern stands behind a cheaper look for what it cannot do without."""
    if "PRIVATE KEY" in text:
        text = _KEY_BLOCK.sub(partial(_put, found, "PRIVATE_KEY", None), text)
    if _LONG_WORD(text):
        if any(prefix in text for prefix in _PREFIXES):
            text = _SECRET.sub(partial(_put, found, "SECRET", _is_secret), text)
        if _NAME_OF_SECRET(text):
            text = _NAMED_SECRET.sub(partial(_put, found, "SECRET", _is_random), text)
    if "@" in text:
        text = _URL_LOGIN.sub(partial(_put, found, "SECRET", None), text)
        text = _EMAIL.sub(partial(_put, found, "EMAIL", _is_email), text)
    if _DOTTED(text):
        text = _IPV4.sub(partial(_put, found, "IP_ADDRESS", _is_public_address), text)
    if text.count(":") > 1:
        text = _IPV6.sub(partial(_put, found, "IP_ADDRESS", _is_public_address), text)
    if _COUNTRY(text):
        text = _IBAN.sub(partial(_put_iban, found), text)
    if _SEVEN_DIGITS(text):
        if _FOURTEEN_DIGITS(text):
            text = _CARD.sub(partial(_put, found, "CREDIT_CARD", _is_card), text)
        lower = text.lower()
        if _HYPHENS(text) or "ssn" in lower or "social security" in lower:
            text = _SSN.sub(partial(_put, found, "US_SSN", None), text)
        text = _PHONE.sub(partial(_put, found, "PHONE", _is_phone), text)
        if any(word in lower for word in _PHONE_WORDS):
            text = _NAMED_PHONE.sub(partial(_put, found, "PHONE", _is_phone), text)
    return text


def _put(found: Counter[str], name: str, check: Callable[[re.Match[str]], bool] | None, match: re.Match[str]) -> str:
    """The placeholder, after what the pattern's group `before` caught."""
    if check is not None and not check(match):
        return match.group()
    found[name] += 1
    return (match.groupdict().get("before") or "") + f"[{name}]"


def _put_iban(found: Counter[str], match: re.Match[str]) -> str:
    """The country says how long the IBAN is; what follows it stays."""
    text, iban = match.group(), ""
    for end, character in enumerate(text):
        iban += character if character.isalnum() else ""
        if len(iban) == IBAN_LENGTHS.get(text[:2]):
            if iban_is_valid(iban) and not text[end + 1 : end + 2].isalnum():
                found["IBAN"] += 1
                return "[IBAN]" + text[end + 1 :]
            break
    return text


def _is_secret(match: re.Match[str]) -> bool:
    text = match.group()
    if text.startswith("eyJ"):
        return _is_token(text)
    if text.startswith(("sk-", "xox")) and not re.search(r"[0-9]", text):  # sk-learn-style-names-of-things
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


def _is_email(match: re.Match[str]) -> bool:
    local, _, domain = match.group().rpartition("@")
    if domain.rpartition(".")[2].lower() in {"png", "jpg", "jpeg", "gif", "svg", "webp", "avif"}:  # icon@2x.png
        return False
    return not (local == "git" and match.string[match.end() : match.end() + 1] == ":")  # git@github.com:owner/name


def _is_card(match: re.Match[str]) -> bool:
    digits = re.sub(r"\D", "", match.group())
    return bool(_ISSUER.fullmatch(digits)) and len(set(digits)) > 1 and luhn(digits)


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
    return 7 <= sum(character.isdigit() for character in number) <= 15 and not _DATE.search(number)


_DIGIT_OR_AT = re.compile(r"[0-9@]").search
_LONG_WORD = re.compile(r"[^\s]{16}").search
_DOTTED = re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]").search
_COUNTRY = re.compile(r"[A-Z]{2}[0-9]{2}").search
_SEVEN_DIGITS = re.compile(r"[0-9](?:[ \u00a0.\-\u2011/()]{0,2}[0-9]){6}").search
_FOURTEEN_DIGITS = re.compile(r"[0-9](?:[ -]?[0-9]){13}").search
_HYPHENS = re.compile(r"[0-9]-[0-9]{2}-[0-9]").search
_NAME_OF_SECRET = re.compile(r"[kstabp](?:ey|ecret|oken|uth|earer|assw)", re.IGNORECASE).search
_PREFIXES = (
    "sk-", "k_live_", "k_test_", "whsec_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "glrt-",
    "gldt-", "glcbt-", "glptt-", "gloas-", "AKIA", "ASIA", "ABIA", "ACCA", "AROA", "AIDA", "AIza", "ya29.", "GOCSPX-",
    "xox", "xapp-", "hf_", "r8_", "gsk_", "xai-", "pplx-", "npm_", "pypi-", "dckr_pat_", "SG.", "AC", "SK", "_v1_",
    "dapi", "shp", "lin_api_", "ntn_", "hvs.", "hvb.", "AGE-", ":AA", "eyJ",
)  # fmt: skip

_KEY_BLOCK = re.compile(  # no possessive quantifiers of groups: the first releases of Python 3.11 get them wrong
    r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:[^-]*(?:-(?!----)[^-]*)*-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    r"|(?:(?:\s|\\n)+[A-Za-z0-9+/=]{16,})+(?:\s|\\n)*)"  # cut off before its end
)

_SECRET = re.compile(
    r"(?<![A-Za-z0-9_])(?:"
    r"sk-[A-Za-z0-9_-]{20,}+"  # OpenAI, Anthropic, OpenRouter, DeepSeek
    r"|(?:[sr]k_live|[sr]k_test|whsec)_[A-Za-z0-9+/=]{16,}"  # Stripe
    r"|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,}"
    r"|gl(?:pat|rt|dt|cbt|ptt|oas)-[A-Za-z0-9_.-]{20,}"  # GitLab
    r"|(?:AKIA|ASIA|ABIA|ACCA|AROA|AIDA)[A-Z2-7]{16}(?![A-Za-z0-9])"  # AWS
    r"|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_.-]{20,}|GOCSPX-[A-Za-z0-9_-]{28}"  # Google
    r"|xox[abeoprs]-[A-Za-z0-9-]{16,}+|xapp-[0-9]-[A-Za-z0-9-]{20,}"  # Slack
    r"|hf_[A-Za-z0-9]{30,}|r8_[A-Za-z0-9]{30,}|gsk_[A-Za-z0-9]{40,}|xai-[A-Za-z0-9]{60,}|pplx-[A-Za-z0-9]{40,}"
    r"|npm_[A-Za-z0-9]{36}|pypi-AgEI[A-Za-z0-9_-]{50,}|dckr_pat_[A-Za-z0-9_-]{20,}"
    r"|SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}|(?:AC|SK)[0-9a-f]{32}(?![A-Za-z0-9])"  # SendGrid, Twilio
    r"|do[opr]_v1_[0-9a-f]{64}|dapi[0-9a-f]{32}|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}|lin_api_[A-Za-z0-9]{40}"
    r"|ntn_[A-Za-z0-9]{40,}|hv[sb]\.[A-Za-z0-9_-]{24,}|AGE-SECRET-KEY-1[A-Z0-9]{58}"
    r"|[0-9]{8,10}:AA[A-Za-z0-9_-]{33}(?![A-Za-z0-9_-])"  # Telegram
    r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{10,}"  # JSON Web Tokens
    r")"
)
"""Credentials by the prefix of who issues them."""

_NAMED_SECRET = re.compile(
    r"(?P<before>(?<![A-Za-z0-9])(?:api[_ -]?key|access[_ -]?key|secret|auth|bearer|token|passw(?:or)?d|AccountKey)"
    r"(?:[_-]?(?:key|token|id))?[\"']?(?:\s{0,3}[:=]\s{0,3}|\s)(?:bearer )?[\"']?)"
    r"(?P<value>[A-Za-z0-9_+/=.-]{20,}+)(?!\()",
    re.IGNORECASE,
)
"""Random text that a name calls a secret, as in `api_key = "..."` and `Authorization: Bearer ...`."""

_URL_LOGIN = re.compile(r"(?P<before>\b[a-z][a-z0-9+.-]{0,20}://)[^\s/:@\[\]]{0,128}:[^\s/@\[\]]{1,256}(?=@)")

_EMAIL = re.compile(
    r"(?<![\w.%+-])[\w%+-](?:[\w.%+'-]{0,62}[\w%+-])?@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}"
    r"[A-Za-z]{2,24}(?![A-Za-z0-9])"
)

_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?:[ -]?[A-Z0-9]){11,30}")

_CARD = re.compile(
    r"(?<![A-Za-z0-9_])(?<![0-9]\.)(?:[0-9]{4}(?P<s>[ -]?)[0-9]{4}(?P=s)[0-9]{4}(?P=s)[0-9]{4}"
    r"|3[47][0-9]{2}(?P<t>[ -]?)[0-9]{6}(?P=t)[0-9]{5}|3[0689][0-9]{2}(?P<u>[ -]?)[0-9]{6}(?P=u)[0-9]{4}"
    r"|62[0-9]{15,17})(?![A-Za-z0-9_])"
)
_ISSUER = re.compile(
    r"4[0-9]{15}|5[1-5][0-9]{14}|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)[0-9]{12}|3[47][0-9]{13}"
    r"|3(?:0[0-5]|[689][0-9])[0-9]{11}|6(?:011|5[0-9]{2}|4[4-9][0-9])[0-9]{12}|35(?:2[89]|[3-8][0-9])[0-9]{12}"
    r"|62[0-9]{14,17}"
)
"""Visa, Mastercard (twice), American Express, Diners, Discover, JCB, UnionPay."""

_IPV4 = re.compile(r"(?<![\w.])(?<![A-Za-z]/)[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![\w-])(?!\.[0-9])")
_IPV6 = re.compile(r"(?<![\w:.])(?=[0-9A-Fa-f:]*[0-9])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")

_SSN = re.compile(
    r"(?<![\w-])(?!000|666|9)[0-9]{3}-(?!00)[0-9]{2}-(?!0000)[0-9]{4}(?![\w-])"
    r"|(?P<before>\b(?:SSN|[Ss]ocial [Ss]ecurity(?: [Nn]umber)?)\b[^0-9\n]{0,12})(?!000|666|9)[0-9]{3}"
    r" ?(?!00)[0-9]{2} ?(?!0000)[0-9]{4}(?![\w-])"
)

_PHONE = re.compile(
    r"(?<![\w+.,/-])(?:"
    r"\+[1-9](?:[ \u00a0.\-\u2011/]?(?:\([0-9]{1,4}\)|[0-9])){7,14}"  # +49 (0)30 1234567
    r"|(?<![0-9] )00[1-9][0-9]{0,2}(?:[ \u00a0.\-\u2011/][0-9]{2,9}){2,5}"
    r"|(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[.\-\u2011])[2-9][0-9]{2}[ .\-\u2011][0-9]{4}"  # North America
    r"|(?<![0-9] )0[1-9](?:[ .][0-9]{2}){4}"  # France
    r"|\(0[1-9][0-9]{1,4}\) ?[0-9]{3,8}(?:[ -][0-9]{2,5}){0,2}"
    r"|(?<![0-9] )0[1-9][0-9]{1,3}(?:/[0-9]{5,8}|[ -][0-9]{6,8}|[ -][0-9]{3,4}[ -][0-9]{4,5})"  # Germany, Britain
    r")(?![\w]|[.,/-][0-9])"
)
_NAMED_PHONE = re.compile(
    r"(?P<before>\b(?:phone|tel|telephone|telefon|mobile|cell|cellphone|handy|fax|whatsapp|my number|call me|text me"
    r"|reach me)\b[^0-9+\n]{0,20})"
    r"(?P<number>\+?\(?[0-9](?:[ \u00a0.\-\u2011/()]{0,2}[0-9]){6,14})(?![\w]|[.,/-][0-9])",
    re.IGNORECASE,
)
_PHONE_WORDS = (
    "phone",
    "tel",
    "mobile",
    "cell",
    "handy",
    "fax",
    "whatsapp",
    "my number",
    "call me",
    "text me",
    "reach me",
)
_DATE = re.compile(
    r"^(?:19|20)[0-9]{2}[ ./-][01]?[0-9][ ./-][0-3]?[0-9]\b|^[0-3]?[0-9][ ./-][0-3]?[0-9][ ./-](?:19|20)[0-9]{2}\b"
)
