"""The forms of personal data and secrets, for `redaction`: ASCII alone, since texts are folded before (`folded_text`).

Names in lower case are the cheap looks. Nothing here takes more than linear time.
"""

from __future__ import annotations

import re

digit_or_at = re.compile(r"[0-9@]").search
long_word = re.compile(r"[^\s]{16}").search
dotted = re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]").search
at = re.compile(r"[@(\[{<](?:(?<=@)| ?at ?[)\]}>])", re.IGNORECASE).search
country = re.compile(r"[A-Za-z]{2}[0-9]{2}").search
seven_digits = re.compile(r"[0-9](?:(?:[ \t\r\n.\-/()_]{0,4}|\\[nrt])[0-9]){6}").search
fourteen_digits = re.compile(r"[0-9](?:(?:[ \t\r\n.\-/_]{0,3}|\\[nrt])[0-9]){13}").search
hyphens = re.compile(r"[0-9] ?- ?[0-9]{2} ?- ?[0-9]").search
name_of_secret = re.compile(
    r"[kstabpc](?:ey|ecret|oken|uth|earer|assw|assphrase|asic|redential|wd|ig)|aws|\[SECRET\]", re.IGNORECASE
).search
name_of_password = re.compile(r"passw|pwd|passphrase", re.IGNORECASE).search
PREFIXES = (
    "sk-",
    "k_live_",
    "k_test_",
    "whsec_",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "glrt-",
    "gldt-",
    "glcbt-",
    "glptt-",
    "gloas-",
    "AKIA",
    "ASIA",
    "ABIA",
    "ACCA",
    "AROA",
    "AIDA",
    "AIza",
    "ya29.",
    "GOCSPX-",
    "xox",
    "xapp-",
    "hf_",
    "r8_",
    "gsk_",
    "xai-",
    "pplx-",
    "npm_",
    "pypi-",
    "dckr_pat_",
    "SG.",
    "AC",
    "SK",
    "_v1_",
    "dapi",
    "shp",
    "lin_api_",
    "ntn_",
    "hvs.",
    "hvb.",
    "AGE-",
    ":AA",
    "eyJ",
    "rlhf-",
    "token-",
    "nvapi-",
    "tskey-",
    "glsa_",
    "glc_",
    "xkeysib-",
    "PMAK-",
    "NRAK-",
    "key-",
    "figd_",
    "ATATT3",
    "ATCTT3",
    "ATBB",
    "dckr_oat_",
    "pul-",
    "sbp_",
    "sb_secret_",
    "lsv2_",
    "sntry",
    "tgp_v1_",
    "EAA",
    "sq0",
    "rubygems_",
    "cio",
    "fw_",
    "api_org_",
    "secret_",
    "1//0",
    "8Q~",
    "-us",
    "xprv",
    "MT",
    "Mz",
    "Mj",
    "ND",
    "NT",
    "Nj",
    "Nz",
    "OD",
    "OT",
)

KEY_BLOCK = re.compile(  # no possessive quantifiers of groups: the first releases of Python 3.11 get them wrong
    r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:[^-]*(?:-(?!----)[^-]*)*-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    r"|(?:(?:\s|\\n)+[A-Za-z0-9+/=]{16,})+(?:\s|\\n)*)"  # cut off before its end
    r"|Private-Lines: ?[0-9]{1,3}(?:(?:\s|\\n)+[A-Za-z0-9+/=]{16,})+"  # PuTTY's
)

SECRET = re.compile(
    r"(?<![A-Za-z0-9_])(?:"
    r"rlhf-[A-Za-z0-9_-]{40,}|token-[0-9a-f]{12}\.[0-9]{9,11}\.[0-9a-f]{64}"  # our own: tokens, cookies
    r"|sk-[A-Za-z0-9_-]{20,}+"  # OpenAI, Anthropic, OpenRouter, DeepSeek, Langfuse
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
    r"|nvapi-[A-Za-z0-9_-]{40,}|tskey-[a-z]+-[A-Za-z0-9-]{20,}|gl(?:sa|c)_[A-Za-z0-9_=]{32,}"  # NVIDIA, Grafana
    r"|xkeysib-[0-9a-f]{64}-[A-Za-z0-9]{16}|PMAK-[0-9a-f]{24}-[0-9a-f]{34}|NRAK-[A-Z0-9]{27}|key-[0-9a-f]{32}"
    r"|figd_[A-Za-z0-9_-]{40,}|AT[AC]TT3[A-Za-z0-9_=-]{100,}|ATBB[A-Za-z0-9]{28,}|dckr_oat_[A-Za-z0-9_-]{20,}"
    r"|pul-[0-9a-f]{40}|sbp_[0-9a-f]{40}|sb_secret_[A-Za-z0-9_-]{20,}|lsv2_(?:pt|sk)_[0-9a-f]{32}_[0-9a-f]{10}"
    r"|sntry[su]_[A-Za-z0-9_=+/-]{40,}|tgp_v1_[A-Za-z0-9_-]{40,}|EAA[A-Za-z0-9]{80,}|sq0[a-z]{3}-[A-Za-z0-9_-]{22,}"
    r"|rubygems_[0-9a-f]{48}|cio[A-Za-z0-9]{32}|fw_[A-Za-z0-9]{22,}|api_org_[A-Za-z0-9]{30,}|secret_[A-Za-z0-9]{40,}"
    r"|1//0[A-Za-z0-9_-]{30,}|[A-Za-z0-9_~.-]{3}8Q~[A-Za-z0-9_~.-]{31,34}|[0-9a-f]{32}-us[0-9]{1,2}(?![A-Za-z0-9])"
    r"|xprv[1-9A-HJ-NP-Za-km-z]{107}|[MNO][A-Za-z0-9_-]{23,27}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,}"  # Discord
    r"|[0-9]{8,10}:AA[A-Za-z0-9_-]{33}(?![A-Za-z0-9_-])"  # Telegram
    r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{10,}"  # JSON Web Tokens
    r")"
)
"""Credentials by the prefix of who issues them."""

NAMED_SECRET = re.compile(
    r"(?P<before>(?:(?<![A-Za-z0-9])|(?-i:(?<=[a-z])(?=[A-Z])))"
    r"(?:(?:api|access|private)[_ -]?key|secret|auth|bearer|token|passw(?:or)?d|pwd|passphrase|credentials?"
    r"|sig(?:nature)?|(?:Account|SharedAccess)Key)(?:[_-]?(?:key|token|id|hash))?[\"'`]{0,2}"
    r"(?:\s{0,3}(?:[:=]|=>|:=)\s{0,3}|\s|\sis\s)(?:bearer )?[\"'`]{0,2})"
    r"(?P<value>[A-Za-z0-9_+/=.-]{20,}+)(?!\()",
    re.IGNORECASE,
)
"""Random text that a name calls a secret, as in `api_key = "..."` and `Authorization: Bearer ...`."""

AWS_SECRET = re.compile(
    r"(?P<before>(?:(?:aws|secret)[A-Za-z_. -]{0,30}[\"'`*]{0,3}"
    r"(?: \[[^\]\s]{0,24}\])?(?:\s{0,3}(?:[:=,|>]|=>|:=)\s{0,3}|\s|\sis\s)[\"'`*]{0,3}"
    r"|\[SECRET\](?:[\s\"'`:,;|/=]|\\n){1,8}))"  # after the key's id, as in the console's file
    r"(?P<value>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])",
    re.IGNORECASE,
)
"""The secret that belongs to an AWS key: 40 signs of base64, by its name or beside its id."""

BASIC_LOGIN = re.compile(r"(?P<before>\bBasic\s)(?P<value>[A-Za-z0-9+/]{8,}={0,2})(?![A-Za-z0-9+/=])", re.IGNORECASE)

NAMED_PASSWORD = re.compile(
    r"(?P<before>(?:(?<![A-Za-z0-9])|(?-i:(?<=[a-z])(?=[A-Z])))(?:passw(?:or)?[dt]|pwd|passphrase)[\"'`]{0,2}"
    r"\s{0,3}(?:[:=]|=>|:=|\bis:?\s)\s{0,3}[\"'`]{0,2})"
    r"(?=[^\s\"'`]{0,64}[0-9])(?=[^\s\"'`]{0,64}[A-Za-z])(?![^\s\"'`]{0,64}[(\[{<$])"  # no call, no variable
    r"[^\s\"'`>)}\],;]{5,63}[^\s\"'`>)}\],;.:!?]",
    re.IGNORECASE,
)
"""A password with letters and digits, after its name."""

URL_LOGIN = re.compile(r"(?P<before>\b[a-z][a-z0-9+.-]{0,20}://)[^\s/:@\[\]]{0,128}:[^\s/@\[\]]{1,256}(?=@)")

EMAIL = re.compile(
    r"(?<![\w.%+-])(?:[\w%+-](?:[\w.%+'-]{0,62}[\w%+-])?|\"[^\"\n@]{1,62}\")(?:@| ?[\[({<] ?at ?[\])}>] ?)"
    r"(?:(?:[^\W_](?:[\w-]{0,61}[^\W_])?(?:\.| ?[\[({<] ?dot ?[\])}>] ?)){1,8}"
    r"(?:[A-Za-z]{2,24}(?![A-Za-z0-9-])|xn--[A-Za-z0-9-]{2,59}|[^\W\d_]{1,24})"
    r"|\[[0-9A-Fa-f:.]{7,45}\])",
    re.IGNORECASE,
)
"""Letters of any script on both sides (RFC 6531, RFC 5890), quoted names, addresses for domains, `(at)` and `(dot)`."""

IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?:[ \t\r\n.\-/_]{0,3}[A-Za-z0-9]){11,30}")

CARD = re.compile(
    r"(?<![A-Za-z0-9])(?<![0-9][.,])[0-9]{2,19}(?:(?:[ \t\r\n.\-/_]{1,3}|\\[nrt])[0-9]{2,19}){0,200}"
    r"(?![A-Za-z0-9])"
)
"""Groups of digits in a row."""

CARD_GROUPS = {(4, 6, 5), (4, 6, 4), (8, 8), (4, 12), (12, 4), (6, 10), (6, 13), (6, 4, 6), (6, 6, 4)}
"""How many digits each group has, where they are not all four, or all two, or one."""

ISSUER = re.compile(
    r"4(?:[0-9]{15}|[0-9]{18})|5[1-5][0-9]{14}|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)[0-9]{12}"
    r"|3[47][0-9]{13}|3(?:0[0-5]|[689][0-9])[0-9]{11}|6(?:011|5[0-9]{2}|4[4-9][0-9])[0-9]{12}"
    r"|35(?:2[89]|[3-8][0-9])[0-9]{12}|62[0-9]{14,17}|220[0-4][0-9]{12}|(?:60[0-9]{2}|508[5-9]|8[12][0-9]{2})[0-9]{12}"
    r"|(?:50(?:18|20|38)|5893|6304|6759|676[1-3])[0-9]{12,15}"
)
"""Visa, Mastercard (twice), American Express, Diners, Discover, JCB, UnionPay, Mir, RuPay, Maestro."""

IPV4 = re.compile(r"(?<![\w.])(?<![A-Za-z]/)[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![\w-])(?!\.[0-9])")
IPV6 = re.compile(r"(?<![\w:.])(?=[0-9A-Fa-f:]*[0-9])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")

SSN = re.compile(
    r"(?<![\w-])(?!000|666|9)[0-9]{3} ?- ?(?!00)[0-9]{2} ?- ?(?!0000)[0-9]{4}(?![\w-])"
    r"|(?P<before>\b(?:ssns?|s\.s\.n\.|ss ?(?:no|number|#)|social[ _-]?security|my social|soc\.? ?sec\.?|itin|tin"
    r"|taxpayer[ _-]id)(?![a-z])[^0-9]{0,24})(?!000|666)"
    r"[0-9]{3}[ \t\r\n.\-/_]{0,3}(?!00)[0-9]{2}[ \t\r\n.\-/_]{0,3}(?!0000)[0-9]{4}(?![\w-])"
    r"|(?<![\w-])(?!000|666|9)[0-9]{3}[ .](?!00)[0-9]{2}[ .](?!0000)[0-9]{4}(?= (?:is|was) (?:my|his|her|the|their)"
    r" (?:ssn|social))",
    re.IGNORECASE,
)
SSN_WORDS = ("ssn", "s.s.n.", "ss no", "ss number", "ssno", "ss#", "ss #", "social", "sec", "tin", "taxpayer")

PHONE = re.compile(
    r"(?<![\w+.,/-])(?:"
    r"\+[1-9](?:[ .\-/]?(?:\([0-9]{1,4}\)|[0-9])){7,14}"  # +49 (0)30 1234567
    r"|(?<![0-9] )00[1-9][0-9]{0,2}(?:[ .\-/][0-9]{2,9}){2,5}"
    r"|(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[.\-])[2-9][0-9]{2}[ .\-][0-9]{4}"  # North America
    r"|(?<![0-9] )0[1-9](?:[ .][0-9]{2}){4}"  # France
    r"|\(0[1-9][0-9]{1,4}\) ?[0-9]{3,8}(?:[ -][0-9]{2,5}){0,2}"
    r"|(?<![0-9] )0[1-9][0-9]{1,3}(?:/[0-9]{5,8}|[ -][0-9]{6,8}|[ -][0-9]{3,4}[ -][0-9]{4,5})"  # Germany, Britain
    r")(?![\w]|[.,/-][0-9])"
)
NAMED_PHONE = re.compile(
    r"(?P<before>\b(?:phone|tel|telephone|telefon|mobile|cell|cellphone|handy|fax|whatsapp|my number|call me|text me"
    r"|reach me)\b[^0-9+\n]{0,20})"
    r"(?P<number>\+?\(?[0-9](?:[ .\-/()]{0,2}[0-9]){6,14})(?![\w]|[.,/-][0-9])",
    re.IGNORECASE,
)
PHONE_WORDS = (
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
DATE = re.compile(
    r"^(?:19|20)[0-9]{2}[ ./-][01]?[0-9][ ./-][0-3]?[0-9]\b|^[0-3]?[0-9][ ./-][0-3]?[0-9][ ./-](?:19|20)[0-9]{2}\b"
)
