"""Answers to what a network's code asks while it is traced: how many parts, how long, larger than 7?

torch.fx traces without values, and cannot say. The shapes of the example can: the graph so far is run on it without
numbers, and on larger ones, too, of even and odd sizes. Where all answer the same, the answer is taken for that of all
sizes; where it is not, the network that is made of it shows it on another size (`psp.extraction.compare`). What
depends on the numbers themselves has no answer.
"""

import operator
from functools import cached_property
from itertools import count

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from psp.extraction.examples import Interpreter, larger, without_numbers

# The example, an even and an odd size.
ENOUGH = 3


class Answers:
    """The values without numbers of graphs that are being written, on the example and on larger ones.

    Args:
        root: the network that is traced.
        inputs: the example, a tuple of tensors.
        held: {place of an argument of `forward` that is not in the example: (name, its value)}.
    """

    def __init__(self, root, inputs, held):
        self.root, self.inputs, self.held = root, inputs, held
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    @cached_property
    def runs(self):
        return [Run(self.root, self.mode, self._arguments(example)) for example in (self.inputs, *larger(self.inputs))]

    def of(self, node, question):
        """What `question`, a function, says of a node's value: for the example, and for the larger ones that fit."""
        with without_numbers(self.mode):
            answers = [question(self.runs[0].value(node))]
            for run in self.runs[1:]:
                if len(answers) == ENOUGH:
                    break
                try:
                    answers.append(question(run.value(node)))
                except Exception:  # whatever a forward may raise on a size that it is not for
                    self.runs.remove(run)
        return answers

    def _arguments(self, inputs):
        """A value for each argument of `forward`, and more: the inputs, defaults, and None."""
        yield from inputs
        for place in count(len(inputs)):
            yield self.held.get(place, (None, None))[1]


class Run(Interpreter):
    """The values of one example. Where tracing begins anew, what is the same again is not computed again."""

    def __init__(self, root, mode, arguments):
        super().__init__(root, garbage_collect_values=False, graph=fx.Graph())
        self.args_iter = (mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in arguments)
        self.extra_traceback = False
        self.seen = {}

    def placeholder(self, target, args, kwargs):
        """An argument's value; of *args and **kwargs, which the example leaves empty, there is none."""
        if target.startswith("*"):
            return {} if target.startswith("**") else ()
        return super().placeholder(target, args, kwargs)

    def value(self, node):
        """The value of a node, whose graph is computed up to there."""
        new = []
        for earlier in reversed(node.graph.nodes):
            if earlier in self.env:
                break
            new.append(earlier)
        for earlier in reversed(new):
            self.env[earlier] = self._once(earlier)
        return self.env[node]

    def _once(self, node):
        """A node's value; the one of before for the same operation on the same values, by their ids."""
        read = fx.map_arg((node.args, node.kwargs), lambda n: id(self.env[n]))
        same = node.op, node.target, repr(read)
        if same not in self.seen:
            self.seen[same] = self.run_node(node)
        return self.seen[same]


class Asking(fx.Proxy):
    """A value of the network that is traced; Python's questions about it go to its tracer."""

    def __getattr__(self, name):
        return AskingAttribute(self, name)

    def __len__(self):
        return self.tracer.ask(self, len)

    def __index__(self):
        return self.tracer.ask(self, operator.index)

    def __int__(self):
        return self.tracer.ask(self, int)

    def __float__(self):
        return self.tracer.ask(self, float)


class AskingAttribute(Asking, fx.proxy.Attribute):
    """An attribute of such a value, as its shape."""
