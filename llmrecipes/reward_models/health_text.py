"""The health check of a reward model as Markdown."""


def to_markdown(health: dict) -> str:
    """The whole check as a Markdown page."""
    lines = [f"# Reward model: {health['verdict']}", ""]
    lines += [f"- {reason}" for reason in health["reasons"]] + ([""] if health["reasons"] else [])
    if "accuracy" not in health:
        return "\n".join(lines)
    lines += [
        f"{health['num_pairs']:,} held-out pairs ({health['set']}) of {health['num_prompts']:,} prompts; "
        f"{health['left_out']:,} too long. Brackets: 95 % interval, prompts counted once."
    ]
    titles = {
        "by_set": "set",
        "by_margin": "margin",
        "by_length_gap": "length gap (tokens, chosen minus rejected)",
        "by_category": "category",
    }
    for key, title in titles.items():
        if health[key]:
            lines += ["", f"## Accuracy by {title}", "", f"| {title} | accuracy | pairs |", "|---|---|---|"]
            lines += [f"| {_cell(group)} | {percent(e)} | {e['n']:,} |" for group, e in health[key].items()]
    lines += _calibration(health["calibration"])
    lines += ["", "## Length, invariance and scores", "", "| what | figure |", "|---|---|"]
    lines += [
        f"| {name.replace('_', ' ')} | {e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}], n = {e['n']:,} |"
        for name, e in health["length"].items()
        if e
    ]
    lines += [
        f"| max change of a score by {name} | {value:.2g} |"
        for name, value in health["invariance"]["max_difference"].items()
    ]
    if "own_forward" in health["invariance"]:
        lines.append(
            "| max difference from the score of transformers' own head (which skips a last token equal to a pad "
            f"token) | {health['invariance']['own_forward']:.2g} |"
        )
    for side in ("chosen", "rejected"):
        s = health["scores"][side]
        lines.append(
            f"| {side} scores: mean, standard deviation, 5 %, median, 95 % | {s['mean']:.3f}, {s['std']:.3f}, "
            f"{s['p5']:.3f}, {s['p50']:.3f}, {s['p95']:.3f} |"
        )
    lines += ["", "## The worst mistakes", ""] + ([] if health["mistakes"] else ["None."])
    for number, m in enumerate(health["mistakes"], start=1):
        about = ", ".join(
            f"{k} {m[k]:.4g}" if k == "margin" else f"{k} {m[k]}" for k in ("category", "margin") if m[k] is not None
        )
        lines += [
            f"{number}. {about or 'pair'}",
            "",
            *_quote("prompt", m["prompt"]),
            *_quote(f"raters preferred, score {m['chosen_score']:.3f}", m["chosen"]),
            *_quote(f"model preferred, score {m['rejected_score']:.3f}", m["rejected"]),
        ]
    return "\n".join(lines) + "\n"


def _calibration(curve: dict) -> list[str]:
    lines = ["", "## Calibration", "", "| it says | mean | observed | pairs |", "|---|---|---|---|"]
    lines += [
        f"| {100 * b['from']:.0f} to {100 * b['to']:.0f} % | {100 * b['predicted']:.1f} % | "
        f"{percent(b['observed'])} | {b['observed']['n']:,} |"
        for b in curve["curve"]
    ]
    more = "; no temperature fits (no mistakes, or no better than guessing)"
    if curve["temperature"]:
        more = f"; temperature {curve['temperature']:.2f} (1: calibrated, above: overconfident)"
    if curve["error_with_temperature"] is not None:
        more += f"; error with it {curve['error_with_temperature']:.3f} (fitted on the other half)"
    return [*lines, "", f"Expected calibration error {curve['error']:.3f}{more}."]


def percent(e: dict) -> str:
    """ "value % [low, high]" of {"value", "low", "high"}."""
    return f"{100 * e['value']:.1f} % [{100 * e['low']:.1f}, {100 * e['high']:.1f}]"


def _cell(text: str) -> str:
    return " ".join(str(text).replace("|", "\\|").split())


def _quote(name: str, text: str) -> list[str]:
    """A block quote, indented by four spaces so that markup in the text is shown literally."""
    return [f"   {name}:", "", *(f"       {line}" for line in text.splitlines() or ["(nothing)"]), ""]
