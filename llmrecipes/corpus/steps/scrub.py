"""Personal data replaced by what it was: [email], [phone], [ip]. Patterns, so neither complete nor without mistakes."""

import ipaddress
import re
from collections import Counter

EMAIL = re.compile(r"[\w.+-]+@(?:[\w-]+\.)+[A-Za-z]{2,}")
IP = re.compile(
    r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)|(?<![\w:])(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}(?![\w:])"
)
# A country code or an area code and two or more groups, or ten digits and more behind a plus; not dates, not decimals.
PHONE = re.compile(
    r"(?<![\w.,/-])(?:\+\d{1,3}[ .-]?(?:\(0\))?(?:[ .-]?\d{2,4}){2,5}"
    r"|(?:\(\d{2,5}\)[ .-]?|\d{3}[ .-])\d{3,4}[ .-]?\d{4})(?![\w/]|[.,-]\d)"
)


def scrubbed(kinds: tuple[str, ...], changed: Counter, text: str) -> tuple[str, str]:
    """The text without e-mail addresses, public IP addresses and phone numbers; `changed` counts them."""
    if "email" in kinds and "@" in text:
        text, count = EMAIL.subn("[email]", text)
        changed["email"] += count
    if "ip" in kinds:
        text = IP.sub(lambda found: _mask(found[0], changed), text)
    if "phone" in kinds:
        text, count = PHONE.subn("[phone]", text)
        changed["phone"] += count
    return text, ""


def _mask(found: str, changed: Counter) -> str:
    try:
        if not ipaddress.ip_address(found).is_global:
            return found
    except ValueError:
        return found
    changed["ip"] += 1
    return "[ip]"
