"""Where the results of a network's operations lie, first fit by liveness: what is not needed at once shares memory."""

from psp.frozen.values import CONV, POINTWISE


def allocate(operations, output):
    """({operation: where its result begins}, all that is needed), in vectors; that of `output` is kept to the end.

    A result lies in the lowest gap, or takes the place of what the operation is the last to read where it may.
    """
    last = {value.source: i for i, o in enumerate(operations) for value in o.reads}
    last[output] = len(operations)
    begins, living, most = {}, [], 0
    for i, o in enumerate(operations):
        ending = [value.source for value in o.reads if last[value.source] == i and may_overwrite(o, value)]
        begins[o] = begins[ending[-1]] if ending else lowest_gap(living, begins, o.size)
        most = max(most, begins[o] + o.size)
        living = [other for other in (*living, o) if last.get(other, i) > i]
    return begins, most


def lowest_gap(living, begins, size):
    place = 0
    for other in sorted(living, key=begins.get):
        if place + size <= begins[other]:
            break
        place = max(place, begins[other] + other.size)
    return place


def may_overwrite(o, value):
    """Whether nothing of a value is read any more when an operation writes in its place."""
    fitting = value.whole and value.source.size == o.size
    alone = [other.source for other in o.reads].count(value.source) == 1
    return fitting and alone and (o.kind in POINTWISE or (o.kind == CONV and value is not o.reads[0]))
