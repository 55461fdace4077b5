"""Answers to what a network's code asks while it is traced: how many parts, how long, larger than 7?

torch.fx traces without values, and cannot say. The shapes of the example can: the graph so far is run on it without
numbers, and on larger ones, too, of even and odd sizes. Where all answer the same, the answer holds for all sizes. What
depends on the numbers themselves has no answer.
"""

import operator

from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from psp.extraction.examples import larger, without_numbers


class Answers:
    """The values without numbers of a graph that is being written, on the example and on larger ones.

    Args:
        root: the network that is traced.
        graph: what is written of it so far, at any time.
        arguments: a function of a tuple of inputs that gives a value for each placeholder.
        inputs: the example.
    """

    def __init__(self, root, graph, arguments, inputs):
        self.graph = graph
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        with without_numbers(self.mode):
            examples = [inputs, *larger(inputs)]
            fakes = [tuple(self.mode.from_tensor(x) for x in example) for example in examples]
        self.runs = [fx.Interpreter(root, False, graph) for _ in fakes]
        for run, fake in zip(self.runs, fakes, strict=True):
            run.extra_traceback = False
            run.args_iter = iter(arguments(fake))

    def of(self, node, question):
        """What `question`, a function, says of a node's value: for the example, and for the larger ones that fit."""
        with without_numbers(self.mode):
            answers = [question(self._value(self.runs[0], node))]
            for run in self.runs[1:]:
                try:
                    answers.append(question(self._value(run, node)))
                except Exception:  # whatever a forward may raise on a size that it is not for
                    self.runs.remove(run)
        return answers

    def _value(self, run, node):
        new = []
        for earlier in reversed(self.graph.nodes):
            if earlier in run.env:
                break
            new.append(earlier)
        for earlier in reversed(new):
            run.env[earlier] = run.run_node(earlier)
        return run.env[node]


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
