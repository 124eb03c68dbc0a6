"""A plan as text."""

GIB = 1 << 30


def show_plan(plan: dict) -> str:
    """The table that `recipes/plan.py` prints."""
    gpu, many = plan["gpu"], plan["num_gpus"]
    sizes = plan["parameters"]
    lines = [
        f"{plan['config'] or 'command line'} on {many} × {gpu['name']} ({gpu['memory']} GB, {gpu['tflops']} TFLOP/s bf16, "
        f"{gpu['bandwidth']} GB/s)",
        f"  parameters            {_count(sizes['all'])}, {_count(sizes['trained'])} trained",
        f"  rows a step           {plan['global_batch_size']:,}",
        "",
        "  memory per GPU, GiB, at each phase's fullest moment",
    ]
    parts = list(dict.fromkeys(part for phase in plan["memory"].values() for part, size in phase.items() if size))
    names = list(plan["memory"])
    width = max(map(len, [*parts, "all"])) + 2
    lines.append(f"    {'':<{width}}" + "".join(f"{name:>{len(name) + 3}}" for name in names))
    for part in [*parts, "all"]:
        cells = [sum(plan["memory"][n].values()) if part == "all" else plan["memory"][n].get(part, 0) for n in names]
        lines.append(f"    {part:<{width}}" + "".join(f"{_gib(c):>{len(n) + 3}}" for n, c in zip(names, cells, strict=True)))
    lines += ["", *_verdict(plan), *_time(plan)]
    disk = plan["disk"]
    enough = "" if disk["result"] + disk["checkpoints"] <= disk["free"] else ": NOT ENOUGH"
    lines.append(
        f"  disk                  result {disk['result'] / 1e9:.1f} GB, checkpoints up to {disk['checkpoints'] / 1e9:.1f} "
        f"GB, free here {disk['free'] / 1e9:.0f} GB{enough}"
    )
    if plan.get("traced"):
        parts = ", ".join(f"{part} {_gib(size)}" for part, size in plan["traced"].items() if part != "Total" and size >= 1e6)
        lines.append(f"  traced, GiB           {_gib(plan['traced']['Total'])} ({parts})")
    lines += [f"  unknown               {text}" for text in plan["unknown"]]
    lines.append(f"  GPU data              {gpu['source']}")
    return "\n".join(lines)


def _verdict(plan: dict) -> list[str]:
    peak, usable = _gib(plan["peak"]), _gib(plan["usable"])
    if plan["fits"]:
        return [f"  fits                  yes: {peak} of {usable} GiB that can be used"]
    keys = "; ".join(plan["would_fit_with"]) or "no key that is known here"
    lines = [f"  fits                  NO: {peak} of {usable} GiB that can be used"]
    if plan["fits_with"]:
        return [*lines, f"  would fit with        {keys} ({_gib(plan['peak_with'])} GiB)"]
    short = f"{_gib(plan['peak_with'])} GiB with {keys}"
    return [*lines, f"  does not fit either   {short}; take more or larger GPUs, or a smaller model"]


def _time(plan: dict) -> list[str]:
    rows = [f"  rows                  {text}" for text in plan["rows"]]
    if plan["steps"] is None:
        return rows
    price = f", {plan['price']:,.2f} at the price given" if plan["price"] is not None else ""
    lines = [
        *rows,
        f"  work                  {plan['steps']:,} steps, at most {plan['tokens']:,} tokens, {plan['flops']:.2e} FLOPs",
        f"  time                  {hours(plan['hours'])} at {plan['mfu']:.0%} of the peak{price}",
    ]
    if len(plan["hours_by_phase"]) > 1:
        lines.append("    " + ", ".join(f"{phase} {hours(time)}" for phase, time in plan["hours_by_phase"].items()))
    return lines


def hours(value: float) -> str:
    """A number of hours as text, in hours, minutes or seconds."""
    return f"{value:.1f} h" if value >= 1 else f"{value * 60:.1f} min" if value >= 1 / 60 else f"{value * 3600:.0f} s"


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}" if size >= 0.05 * GIB else f"{size / GIB:.3f}" if size else "-"


def _count(n: int) -> str:
    return f"{n / 1e9:.2f} B" if n >= 1e9 else f"{n / 1e6:.2f} M"
