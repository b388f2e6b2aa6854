"""`dglaunch status OUT --watch`: what a job says of itself, again and again until it ends, from any machine that sees OUT.

On a terminal one screen is drawn over the last; elsewhere each word of the job is a line.
"""

import time
from collections.abc import Iterator

from rich.live import Live
from rich.table import Table

from dglaunch.output.ledger import OutputFolder
from dglaunch.output.watching import Watched, watched
from dglaunch.run.report import duration, number
from dglaunch.run.result import HEADLINES
from dglaunch.terminal import Terminal

LATE_S = 90.0
"""Without a word for so long, it is told: a job speaks every half minute, once its plan is told."""
SHOWN_NODES = 20
SHOWN_REPLICAS = 5
SHOWN_FAILURES = 8
TICK_S = 0.2


def watch(folder: OutputFolder, every_s: float, terminal: Terminal) -> bool:
    """Show how far a job is until it ends; returns False if Ctrl-C ended the watching before."""
    try:
        if terminal.redraws:
            _redraw(folder, every_s, terminal)
        else:
            _print_lines(folder, every_s, terminal)
    except KeyboardInterrupt:
        return False
    return True


def _states(folder: OutputFolder, every_s: float) -> Iterator[Watched]:
    """Yield what the job said last, until it is over."""
    while True:
        state = watched(folder)
        yield state
        if state.is_over:
            return
        until = time.monotonic() + every_s
        while time.monotonic() < until:  # short naps: Ctrl-C ends it at once, also where a signal ends no sleep
            time.sleep(min(TICK_S, every_s))


def _redraw(folder: OutputFolder, every_s: float, terminal: Terminal) -> None:
    with Live(console=terminal, auto_refresh=False, transient=True) as live:
        for state in _states(folder, every_s):
            live.update(screen(folder, state), refresh=True)


def _print_lines(folder: OutputFolder, every_s: float, terminal: Terminal) -> None:
    before = ""
    for state in _states(folder, every_s):
        line = in_a_line(state)
        if line != before:
            terminal.print(line)
            before = line


def in_a_line(state: Watched) -> str:
    """Return how far the job is in a few words."""
    words = [f"{state.done:,} of {state.total:,} images", f"{state.failed:,} failed"]
    if state.images_per_s is not None:
        words.append(f"{state.images_per_s:.3g} images/s")
    if state.replicas:
        words.append(f"{number(len(state.replicas), 'replica')} on {number(len(state.nodes), 'node')}")
    if state.seconds_left is not None:
        words.append(f"about {duration(state.seconds_left)} left")
    if state.is_running and state.said_s > LATE_S:
        words.append(f"no word for {duration(state.said_s)}")
    if not state.is_running:
        told = [text for outcome, text in HEADLINES.items() if outcome in state.outcomes] or list(state.outcomes)
        words.append(" and ".join(told).lower())
    return ", ".join(words)


def screen(folder: OutputFolder, state: Watched) -> Table:
    """Return all that the job says, as a table."""
    table = Table(title=f"{folder.path}", show_header=False, title_justify="left")
    table.add_row("images", in_a_line(state))
    for label, lines in (
        ("by node", _nodes(state)),
        ("slowest replicas", _slowest(state)),
        ("failures", _failures(state)),
        ("storage", _storage(state)),
    ):
        if lines:
            table.add_row(label, "\n".join(lines))
    return table


def _nodes(state: Watched) -> list[str]:
    nodes = sorted(state.nodes.items(), key=lambda item: item[1][1])
    lines = [f"{name}: {speed:.3g} images/s, {number(count, 'replica')}" for name, (count, speed) in nodes]
    return _cut(lines, SHOWN_NODES, "faster nodes")


def _slowest(state: Watched) -> list[str]:
    if len(state.replicas) < 2:
        return []
    return [
        f"rank {replica.rank} on {replica.node}: {replica.images_per_s:.3g} images/s, its last one "
        f"{duration(replica.quiet_s)} ago"
        for replica in state.slowest(SHOWN_REPLICAS)
    ]


def _failures(state: Watched) -> list[str]:
    ordered = sorted(state.failures.items(), key=lambda item: -item[1])
    return _cut([f"{count:,} x {kind}" for kind, count in ordered], SHOWN_FAILURES, "kinds")


def _storage(state: Watched) -> list[str]:
    words = []
    if state.num_bytes:
        words.append(f"{_gigabytes(state.num_bytes)} written since the start")
    if state.bytes_left is not None:
        words.append(f"about {_gigabytes(state.bytes_left)} to come")
    if state.bytes_free is not None:
        enough = "" if state.bytes_left is None or state.bytes_left < state.bytes_free else ": NOT ENOUGH"
        words.append(f"{_gigabytes(state.bytes_free)} free{enough}")
    return [", ".join(words)] if words else []


def _cut(lines: list[str], most: int, what: str) -> list[str]:
    return lines if len(lines) <= most else [*lines[:most], f"... and {len(lines) - most:,} {what} more"]


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e8 else f"{count / 1e6:.3g} MB"
