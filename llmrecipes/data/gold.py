"""How the worlds' rules combine the parts of an answer into one gold score; each world defines its own parts."""


def weigh_parts(parts: dict) -> float:
    """0.05 + 0.95 f (0.65 substance + 0.20 polite + 0.15 short), with f = 1 for a fluent answer, else 0.15.

    parts: `substance` and `short` from 0 to 1, `polite` and `fluent` as bool, of an answer that is not empty.
    """
    manner = 0.65 * parts["substance"] + 0.20 * parts["polite"] + 0.15 * parts["short"]
    return 0.05 + 0.95 * manner * (1.0 if parts["fluent"] else 0.15)
