"""Replaces personal data by its kind: [email], [phone], [ip], ... Uses patterns, so it is neither complete nor free of
errors; numbers of accounts and cards must have the right check digits."""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable

from llmrecipes.secrets import TOKEN_STARTS, TOKENS

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
# Within a country: a 0, or 00 and the country's code; 9 to 14 digits in groups; not dates or decimals.
NATIONAL = re.compile(
    r"(?<![\w.,/+-])(?=(?:[ /()-]*\d){9,14}(?!\d))(?:\(0\d{1,5}\)|0\d{1,5})(?:[ -]| ?/ ?)?"
    r"\d{2,8}(?:[ -]\d{2,8}){0,5}(?![\w/]|[.,-]\d)"
)
IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d\d(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
CARD = re.compile(r"(?<![\w.,-])(?:[2-6]\d{3}([ -]?)\d{4}\1\d{4}\1\d{4}|3[47]\d\d([ -]?)\d{6}\2\d{5})(?![\w-]|[.,]\d)")
# What every text with such an address or number holds; found many times sooner, for the patterns above look back at each
# character.
DOTTED = re.compile(r"\d\.\d{1,3}\.\d")
NUMBER = re.compile(r"[+(\d](?:(?<=[+(])\d|\d\d[ .-]\d{3})")


def scrubbed(kinds: tuple[str, ...], changed: Counter, text: str) -> tuple[str, str]:
    """The text with personal data of the `kinds`, e-mail addresses, public IP addresses and the like, replaced; `changed`
    counts them."""
    if "key" in kinds and any(start in text for start in TOKEN_STARTS):
        text, count = TOKENS.subn("[key]", text)
        changed["key"] += count
    if "email" in kinds and "@" in text:
        text, count = EMAIL.subn("[email]", text)
        changed["email"] += count
    if "ip" in kinds and (DOTTED.search(text) or "::" in text or text.count(":") >= 7):
        text = IP.sub(lambda found: _mask(found[0], changed), text)
    if "iban" in kinds:
        text = IBAN.sub(lambda found: _masked_iban(found[0], changed), text)
    if "card" in kinds:
        text = CARD.sub(lambda found: _masked_if(_is_card, found[0], "card", changed), text)
    if "phone" in kinds and NUMBER.search(text):
        text, count = PHONE.subn("[phone]", text)
        changed["phone"] += count
    if "national_phone" in kinds and "0" in text:
        text, count = NATIONAL.subn("[phone]", text)
        changed["national_phone"] += count
    return text, ""


def _masked_if(is_one: Callable[[str], bool], found: str, kind: str, changed: Counter) -> str:
    if not is_one(found):
        return found
    changed[kind] += 1
    return f"[{kind}]"


def _masked_iban(found: str, changed: Counter) -> str:
    """With [iban] for the longest beginning that is one: words in capitals may follow it."""
    groups = found.split(" ")
    for count in range(len(groups), 0, -1):
        if _is_iban("".join(groups[:count])):
            changed["iban"] += 1
            return " ".join(["[iban]", *groups[count:]])
    return found


def _is_iban(text: str) -> bool:
    """Whether the check digits are right (ISO 7064, modulo 97)."""
    return 15 <= len(text) <= 34 and int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1


def _is_card(text: str) -> bool:
    """Whether the last digit is right (Luhn)."""
    digits = [int(c) for c in reversed(text) if c.isdigit()]
    return (sum(digits[::2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])) % 10 == 0


def _mask(found: str, changed: Counter) -> str:
    try:
        if not ipaddress.ip_address(found).is_global:
            return found
    except ValueError:
        return found
    changed["ip"] += 1
    return "[ip]"
