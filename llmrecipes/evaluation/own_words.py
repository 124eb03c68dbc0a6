"""What an answer says in its own name: without the words of others, and without text drafted for the user to send."""

import re

# Somebody else's words: text in quotation marks inside a sentence, or after "she says:".
_OTHERS = re.compile(
    r"(?<=[\w:,] )\"[^\"]*\"|\b(?!I\b)\w+ (?:says?|said|wrote|writes?|replie[sd]|answered|told|shouts?|shouted|asks?|asked):"
    r" ?[^.!?\n]*[.!?]?",
    re.I,
)
_QUOTED = re.compile(
    r"```.*?(?:```|\Z)|^[ \t]*>.*$|^[ \t*_]*\"[^\"]*\"|(?<=[\w:,.\n] )\"[^\"]*\""
    r"|(?:^|(?<=[\s:(]))'(?!\w{1,3} )[^'\n]*(?:\w'\w[^'\n]*)*[.!?,]'",
    re.S | re.M,
)
_DRAFT = (
    r"(?:letter|e-?mail|message|memo|draft|script|template|poem|haiku|limerick|song|lyrics|verse|chorus|story|dialogue|scene"
    r"|speech|monologue|wording|post|tweet|announcement|rejection|invitation|translation|bio|caption|toast|diary|journal"
    r"|conversation|skit|sketch|rewrite|paraphrase|option|version|voicemail)s?"
)
_PIECE = (
    rf"(?:{_DRAFT}|(?:text|note|repl(?:y|ies)|response|line|phrase|example|sample|comment|sentence|paragraph|statement"
    r"|refusal|excuse|apology|review|summary|suggestion|ways?)s?)"
)
# What introduces a draft and ends in a colon: "Here is a polite note you could send:", "Translation:", "As the vampire:".
_INTRODUCED = re.compile(
    rf"(?:\bhere(?:'s| is| are|'re)\b(?!(?: \w+)? my)[^.!?\n]{{0,150}}\b{_PIECE}\b[^.!?:\n]{{0,100}}"
    r"|\b(?:you|he|she|they|one) (?:could|can|might|may|should)[^.!?\n]{0,150} (?:say|write|reply|respond|answer|send|text"
    r"|tell|put|try|use)\b[^.!?:\n]{0,100}"
    r"|(?:^|[.!?] )(?:just |simply |maybe )?(?:(?:try|say|write|send)(?: \w+){0,4}"
    r"|(?:use|reply|text|tell|answer|put)(?: \w+){1,4})"
    r"|\b(?:something|a line|words) (?:like|along the lines of)[^.!?:\n]{0,100}"
    r"|\b(?:it|this) (?:becomes|reads|would read|would be)"
    rf"|^(?:\w+ ){{0,3}}?{_DRAFT}(?: [\w-]+){{0,6}}"
    rf"|^(?!(?:short|quick|important|please|final|the)\b)(?:[\w-]+ ){{1,3}}{_PIECE}(?: [\w-]+){{0,6}}"
    rf"|^{_PIECE} (?:to|for|from)(?: [\w-]+){{1,5}}"
    r"|^(?:as|for|from|in) (?!an? (?:ai|language|large|assistant|chat|model))(?:the|an?|your) [^:.\n]{1,40}"
    r"|^(?:subject|re|title))[*_ ]*:(?!\S)",
    re.I | re.M,
)
# A template's placeholders, "[your name]", and a whole message on one line.
_TEMPLATE = re.compile(
    r"[^.!?\n]{0,150}\[[A-Za-z][\w ',/-]*\](?!\()[^.!?\n]{0,150}"
    r"|^(?:Dear|Hi|Hello|Hey) [A-Z]\w*,[^\n]*[.!?] (?:All the best|Best(?: \w+)?|\w+ regards|Regards|Cheers|Love|Thanks"
    r"|Sincerely|Yours(?: \w+)?),? [A-Z]\w*[.!]?$",
    re.M,
)
_SALUTATION = re.compile(
    r"^[ \t*_]*(?:(?:dear|hi|hello|hey|good (?:morning|afternoon|evening)) [^\n.!?]{1,40}[,:!]|to whom it may concern[,:])"
    r"[ \t]*(?=\n)",
    re.I | re.M,
)
_CLOSING = re.compile(
    r"^[ \t*_]*(?:(?:(?:best|kind|warm|kindest|warmest)(?: regards| wishes)?|regards|sincerely|yours(?: \w+)?|cheers|love"
    r"|with \w+|many thanks|thanks|thank you)(?: again)?|take care)[,.!]?[ \t]*\n+[^\n]*(?:\n|\Z)",
    re.I | re.M,
)
# The speaker turns back to the user; what follows are the speaker's own words again.
_RESUMED = re.compile(
    r"^[ \t*_(]*(?:let me know|feel free|(?:I )?hope (?:this|that|it)|would you like|do you want|if you(?:'d| would| want)"
    r"|you (?:can|could|may|might) (?:also|adjust|change|replace|edit|add)|I can also\b|I kept|I(?:'ve| have) (?:kept"
    r"|made)|note that|just (?:replace|fill)|replace |good luck|that said|however|but I)",
    re.I | re.M,
)
_SPEAKER = re.compile(r"^[ \t*_]*([A-Z][\w .'-]{0,24}?)[*_]*:[*_]* +\S.*$", re.M)
_CHAT = re.compile(r"user|human|assistant|ai|bot|question|answer|note|response|q|a", re.I)  # turns of a chat, not of a play


def straighten(text: str) -> str:
    """`text` with straight quotation marks and apostrophes."""
    return text.translate(str.maketrans("‘’“”", "''\"\""))


def own_words(answer: str) -> str:
    """The answer without the words of others, with straight quotation marks and apostrophes."""
    return _OTHERS.sub("", straighten(answer))


def undrafted(answer: str) -> str:
    """The answer's own words, without drafts either: removes quotations and code, letters from salutation to signature, the
    text after "Here is a note you could send:" until the speaker addresses the user again, and lines of dialogue."""
    text = straighten(answer)
    speakers = set(_SPEAKER.findall(text))
    if len(speakers) > 1 and not any(_CHAT.fullmatch(name) for name in speakers):
        text = _SPEAKER.sub("", text)
    text = _cut(text, _INTRODUCED, _RESUMED)
    if _CLOSING.search(text):
        text = _cut(text, _SALUTATION, _CLOSING, with_end=True)
    return _OTHERS.sub("", _TEMPLATE.sub(" ", _QUOTED.sub(" ", text)))


def _cut(text: str, begin: re.Pattern, end: re.Pattern, with_end: bool = False) -> str:
    """`text` without what follows each match of `begin`, up to the next match of `end` or the text's end."""
    kept, position = [], 0
    while match := begin.search(text, position):
        kept.append(text[position : match.end()])
        stop = end.search(text, match.end())
        position = len(text) if stop is None else stop.end() if with_end else stop.start()
    return " ".join([*kept, text[position:]])
