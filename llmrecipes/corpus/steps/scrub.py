"""Replaces personal data by its kind: [email], [phone], [ip]. Uses patterns, so it is neither complete nor free of
errors."""

import ipaddress
import re
from collections import Counter

EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]+(?:'[\w.+%-]+){0,3}@(?:[\w-]+\.)+(?:xn--[A-Za-z0-9-]+|[^\W\d_]{2,})")
# IPv6 shortened by "::" only where it begins as all addresses of the Internet do (2000::/3): a::b is code.
IP = re.compile(
    r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)|(?<![\w:])(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}(?![\w:])"
    r"|(?<![\w:])[23][0-9a-fA-F]{3}:(?:[0-9a-fA-F]{1,4}:)*(?::[0-9a-fA-F]{1,4})*(?:(?<=:):)?(?!\w|:[\w:])"
)
# After a plus, seven or more digits in groups; otherwise an area code and two groups; not dates or decimals.
PHONE = re.compile(
    r"(?<![\w.,/-])(?:\+(?=(?:[ .()-]{0,2}\d){7})\d{1,3}[ .-]?(?:\(\d{1,5}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){1,5}"
    r"|(?:1[ .-])?(?:\(\d{2,5}\)[ .-]?|\d{3}[ .-])\d{3,4}[ .-]?\d{4})(?![\w/]|[.,-]\d)"
)
# What every text with such an address or number holds; found many times sooner, for the patterns above look back at each
# character.
DOTTED = re.compile(r"\d\.\d{1,3}\.\d")
NUMBER = re.compile(r"[+(\d](?:(?<=[+(])\d|\d\d[ .-]\d{3})")


def scrubbed(kinds: tuple[str, ...], changed: Counter, text: str) -> tuple[str, str]:
    """The text with e-mail addresses, public IP addresses and phone numbers replaced; `changed` counts them."""
    if "email" in kinds and "@" in text:
        text, count = EMAIL.subn("[email]", text)
        changed["email"] += count
    if "ip" in kinds and (DOTTED.search(text) or "::" in text or text.count(":") >= 7):
        text = IP.sub(lambda found: _mask(found[0], changed), text)
    if "phone" in kinds and NUMBER.search(text):
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
