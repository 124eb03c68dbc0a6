"""Sixty texts that try to do something where they should only be read."""

REMOTE = "http://198.51.100.1"  # an address reserved for documentation: nothing answers there
HIT = "window.hit=1"

_MARKUP = [
    f"<script>{HIT}</script>",
    f"<SCRIPT SRC={REMOTE}/x.js></SCRIPT>",
    f"<img src=x onerror={HIT}>",
    f"<img src={REMOTE}/a.png>",
    f"<svg onload={HIT}>",
    f"<svg><script>{HIT}</script></svg>",
    f"<body onload={HIT}>",
    f"<iframe src='javascript:parent.{HIT}'></iframe>",
    f"<iframe src={REMOTE}></iframe>",
    f"<iframe srcdoc='<script>parent.{HIT}</script>'></iframe>",
    f"<a href='javascript:{HIT}'>x</a>",
    f"<details open ontoggle={HIT}>x</details>",
    f"<video><source onerror={HIT}></video>",
    f"<audio src={REMOTE}/a.mp3 autoplay>",
    f"<link rel=stylesheet href={REMOTE}/x.css>",
    f"<style>@import '{REMOTE}/x.css';</style>",
    f"<div style='background:url({REMOTE}/b.png)'>x</div>",
    f"<meta http-equiv=refresh content='0;url={REMOTE}'>",
    f"<base href={REMOTE}/>",
    f"<form action={REMOTE}><button>x</button></form>",
    f"<object data={REMOTE}/x.swf></object>",
    f"<embed src={REMOTE}/x.swf>",
    f"<input autofocus onfocus={HIT}>",
    f"<marquee onstart={HIT}>x</marquee>",
    f'"><script>{HIT}</script>',
    f"'><img src=x onerror={HIT}>",
    f"</textarea><script>{HIT}</script>",
    f"</li></ol><script>{HIT}</script>",
    f"</pre></code><img src=x onerror={HIT}>",
    f"<math><mtext><script>{HIT}</script></mtext></math>",
    f"<template><script>{HIT}</script></template>",
    f"&lt;script&gt;{HIT}&lt;/script&gt;",
    f"<scr<script>ipt>{HIT}</script>",
    f"%3Cscript%3E{HIT}%3C/script%3E",
    f"\\u003cscript\\u003e{HIT}",
]
_MARKDOWN = [
    f"![p]({REMOTE}/a.png)",
    f"[x](javascript:{HIT})",
    f"[x]({REMOTE})",
    f"![x][1]\n\n[1]: {REMOTE}/a.png",
    f"```html\n<script>{HIT}</script>\n```",
    f"```\n</code></pre><img src=x onerror={HIT}>",
    f"<{REMOTE}/a.png>",
    f"$\\href{{javascript:{HIT}}}{{x}}$",
    f"| a |\n|---|\n| <img src=x onerror={HIT}> |",
]
_TEMPLATES = [
    f"${{{HIT}}}",
    "${value}",
    "{{constructor.constructor('window.hit=1')()}}",
    "{{#each this}}{{this}}{{/each}}",
    "{% raw %}",
    "%s %d %n",
]
_DATA = [
    "'; DROP TABLE judgements; --",
    '" OR 1=1 --',
    "../../../../etc/passwd",
    "..\\..\\windows\\win.ini",
    "/gradio_api/file=/etc/passwd",
]
_LETTERS = [
    "zero\u200bwidth\u200djoiner\ufeff",
    "right\u202eto left\u202c end",
    "\u2067isolated\u2069 \u200f",
    "e\u0301\u0323 \u1e9b\u0323",
    "nul\x00 bell\x07 esc\x1b[31m",
]

INJECTIONS = _MARKUP + _MARKDOWN + _TEMPLATES + _DATA + _LETTERS
assert len(INJECTIONS) == len(set(INJECTIONS)) == 60
