"""Tables of docs/nat.md, written between their markers from stored outcomes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.lab.expect import KINDS, is_direct
from tests.lab.rules import Nat

PAGE = Path(__file__).resolve().parents[2] / "docs" / "nat.md"
SLOWER_S = 0.5
"""A difference in p95 that counts."""

Outcomes = dict[str, list[dict[str, Any]]]


def write(name: str, text: str) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- end name -->`."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
    page = PAGE.read_text()
    head, _, rest = page.partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        raise LookupError(f"{PAGE} has no place for {name}")
    PAGE.write_text(f"{head}{begin}{text.rstrip()}\n{end}{tail}")


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least this share of all does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def of_cell(outcomes: Outcomes, pair: str, one: Nat, other: Nat) -> list[dict[str, Any]]:
    """Rounds of a cell, whichever end was in the row."""
    keys = {f"{pair}|{a.value}|{b.value}" for a, b in ((one, other), (other, one))}
    return [outcome for key in keys for outcome in outcomes.get(key, ())]


def matrix(outcomes: Outcomes) -> str:
    """The grid, who is ahead where, and why relayed."""
    parts = [*_grid(outcomes), "", *_verdict(outcomes), "", *_predicted(outcomes), *_why(outcomes)]
    return "\n".join(parts)


def _grid(outcomes: Outcomes) -> Iterator[str]:
    yield "| | " + " | ".join(nat.value for nat in KINDS) + " |"
    yield "|---" * (len(KINDS) + 1) + "|"
    for one in KINDS:
        cells = (
            _text(of_cell(outcomes, "ours", one, other), of_cell(outcomes, "stock", one, other)) for other in KINDS
        )
        yield f"| **{one.value}** | " + " | ".join(cells) + " |"


def _text(ours: list[dict[str, Any]], stock: list[dict[str, Any]]) -> str:
    return f"{_short(ours)}<br>{_short(stock)}"


def _short(rounds: list[dict[str, Any]]) -> str:
    """direct p50 / p95, or how often it was what."""
    if not rounds:
        return "·"
    ways = Counter(outcome["way"] for outcome in rounds)
    times = [outcome["direct_s"] for outcome in rounds if outcome["way"] == "direct"]
    parts = []
    if times:
        share = "" if len(times) == len(rounds) else f" ({len(times)} of {len(rounds)})"
        parts.append(f"{percentile(times, 0.5):.2f} / {percentile(times, 0.95):.2f}{share}")
    parts += [way for way in ways if way != "direct" and not (times and way == "relay")]
    return ", ".join(parts)


def _score(rounds: list[dict[str, Any]]) -> tuple[float, float]:
    """Share of rounds that worked and were direct, and the p95 of the time."""
    times = [outcome["direct_s"] for outcome in rounds if outcome["way"] == "direct"]
    dead = sum(outcome["way"] not in ("direct", "relay") for outcome in rounds)
    share = (len(times) - dead) / len(rounds)
    return share, percentile(times, 0.95) if times else math.inf


def _verdict(outcomes: Outcomes) -> Iterator[str]:
    """Cells where one kind of pair is ahead, and those that miss what physics allows."""
    ahead: dict[str, list[str]] = {"ours": [], "tailscaled": [], "missed": []}
    for index, one in enumerate(KINDS):
        for other in KINDS[index:]:
            ours, stock = (of_cell(outcomes, pair, one, other) for pair in ("ours", "stock"))
            name = f"{one.value} × {other.value}"
            if ours and is_direct(one, other) and (_score(ours)[0] < 1 or _score(ours)[1] > 5.0):
                ahead["missed"].append(name)
            if ours and stock and (who := _who(_score(ours), _score(stock))):
                ahead[who].append(name)
    for pair, name in (("ours", "ours"), ("stock", "tailscaled")):
        counts = [len(of_cell(outcomes, pair, a, b)) for i, a in enumerate(KINDS) for b in KINDS[i:]]
        yield f"Rounds a cell, {name}: {min(counts)} to {max(counts)}."
    yield ""
    yield f"Ours ahead in {len(ahead['ours'])} cells: {'; '.join(ahead['ours']) or 'none'}."
    yield ""
    yield f"tailscaled ahead in {len(ahead['tailscaled'])} cells: {'; '.join(ahead['tailscaled']) or 'none'}."
    yield ""
    yield f"Cells that should be direct within 5 s (p95) and are not, ours: {'; '.join(ahead['missed']) or 'none'}."


def _who(ours: tuple[float, float], stock: tuple[float, float]) -> str:
    if abs(ours[0] - stock[0]) > 0.05:
        return "ours" if ours[0] > stock[0] else "tailscaled"
    if math.isinf(ours[1]) or math.isinf(stock[1]) or abs(ours[1] - stock[1]) < SLOWER_S:
        return ""
    return "ours" if ours[1] < stock[1] else "tailscaled"


def _predicted(outcomes: Outcomes) -> Iterator[str]:
    """Cells measured with nodes that predict ports."""
    for key, rounds in outcomes.items():
        pair, one, other = key.split("|")
        if pair == "ours+prediction":
            yield f"With port prediction, {one} × {other}: {_short(rounds)} ({len(rounds)} rounds)."
            yield ""


def _why(outcomes: Outcomes) -> Iterator[str]:
    yield "| relayed | what `status` of our two nodes says |"
    yield "|---|---|"
    for index, one in enumerate(KINDS):
        for other in KINDS[index:]:
            rounds = [o for o in of_cell(outcomes, "ours", one, other) if o["way"] == "relay"]
            if rounds:
                said = Counter(" — ".join(dict.fromkeys(o.get("reasons", ()))) for o in rounds).most_common(1)[0][0]
                yield f"| {one.value} × {other.value} | {said} |"


def scenarios(stored: Outcomes) -> str:
    """A row for each scenario: ours and tailscaled, each figure as p50 / p95 (n)."""
    names = list(dict.fromkeys(key.split("|")[0] for key in stored))
    lines = ["| | ours | tailscaled |", "|---|---|---|"]
    for name in names:
        cells = (_figures(stored.get(f"{name}|{pair}", [])) for pair in ("ours", "stock"))
        lines.append(f"| **{name}** | " + " | ".join(cells) + " |")
    return "\n".join(lines)


_WORDS = {
    "stall_s": "stall",
    "first_s": "first byte",
    "moved_s": "home elsewhere",
    "healed_s": "direct again",
    "down_mbit": "Mbit/s down",
    "up_mbit": "Mbit/s up",
}


def _figures(rounds: list[dict[str, Any]]) -> str:
    if not rounds:
        return "·"
    parts = []
    for key, word in _WORDS.items():
        for name, chosen in _by_trigger(key, word, rounds):
            values = [found[key] for found in chosen if found.get(key) is not None]
            missing = sum(key in found and found[key] is None for found in chosen)
            if values:
                text = f"{name} {percentile(values, 0.5):.2f} / {percentile(values, 0.95):.2f} ({len(values)})"
                parts.append(text + (f", never in {missing}" if missing else ""))
            elif missing:
                parts.append(f"{name} never in {missing}")
    for found in rounds:
        if "cpu_percent" in found:
            parts.append("% of a core, by minute: " + ", ".join(map(str, found["cpu_percent"])))
        if "packets_by_minute" in found:
            parts.append("packets by minute " + ", ".join(map(str, found["packets_by_minute"])))
    judged = [found["intact"] and found.get("flows", True) for found in rounds if "intact" in found]
    if judged:
        parts.append(f"flow survived {sum(judged)} of {len(judged)}")
    failed = [found["note"].splitlines()[0] for found in rounds if "note" in found]
    parts += [f"gave up ({count}): {note}" for note, count in Counter(failed).items()]
    return "<br>".join(parts)


def _by_trigger(key: str, word: str, rounds: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Healing is told apart by whether a ping asked for it."""
    if key != "healed_s" or not any(found.get("triggered") for found in rounds):
        yield word, rounds
        return
    yield f"{word}, by itself", [found for found in rounds if not found.get("triggered")]
    yield f"{word}, after a ping", [found for found in rounds if found.get("triggered")]
