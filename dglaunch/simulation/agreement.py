"""Do the ranks of a replica agree? Their collectives, run against each other as real ranks would."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from dglaunch.simulation.meter import Collective

Sent = tuple[tuple[tuple[int, ...], ...], str]
"""The shapes and the type of a message."""


def disagreement(calls: Mapping[int, Sequence[Collective]]) -> str | None:
    """Return where ranks would wait for one another for ever, or exchange what does not fit; None if all of them come to
    their end.

    Args:
        calls: the collectives of each rank, in its order.
    """
    position = dict.fromkeys(calls, 0)
    sent: dict[tuple[int, int], list[Sent]] = defaultdict(list)
    moved = True
    while moved:
        moved = False
        for rank, own in calls.items():
            while position[rank] < len(own):
                call = own[position[rank]]
                step = _point_to_point(rank, call, sent) if call.peer is not None else _together(rank, calls, position)
                if isinstance(step, str):
                    return step
                if not step:
                    break
                for each in step:
                    position[each] += 1
                moved = True
    waiting = {rank: own[position[rank]] for rank, own in calls.items() if position[rank] < len(own)}
    if not waiting:
        return None
    return "they wait for one another: " + "; ".join(f"rank {rank} in {_words(call)}" for rank, call in waiting.items())


def _point_to_point(rank: int, call: Collective, sent: dict[tuple[int, int], list[Sent]]) -> str | list[int]:
    """The ranks that go on: the sender at once, the receiver once there is something for it."""
    assert call.peer is not None
    message = call.shapes, call.dtype
    if call.kind == "send":
        sent[rank, call.peer].append(message)
        return [rank]
    if not sent[call.peer, rank]:
        return []
    received = sent[call.peer, rank].pop(0)
    if received != message:
        return f"rank {rank} expects {message} of rank {call.peer}, which sends {received}"
    return [rank]


def _together(rank: int, calls: Mapping[int, Sequence[Collective]], position: Mapping[int, int]) -> str | list[int]:
    """The ranks of the group, if all of them have come to this collective."""
    group = calls[rank][position[rank]].ranks
    members = [each for each in group if each in calls]
    heads = {each: calls[each][position[each]] for each in members if position[each] < len(calls[each])}
    if len(heads) < len(members) or any(head.ranks != group for head in heads.values()):
        return []
    if len({(head.kind, head.shapes, head.dtype, head.num_bytes) for head in heads.values()}) > 1:
        return "not alike: " + "; ".join(f"rank {each} in {_words(head)}" for each, head in heads.items())
    return members


def _words(call: Collective) -> str:
    where = f"with rank {call.peer}" if call.peer is not None else f"of ranks {', '.join(map(str, call.ranks))}"
    return f"{call.kind} {where}, {call.dtype} {list(map(list, call.shapes))}"
