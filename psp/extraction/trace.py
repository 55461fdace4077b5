"""A network's code as a torch.fx graph, as far as torch.fx can follow it with the answers that the example gives.

Tracing writes down what `forward` does as a list of nodes: inputs, calls of submodules, functions and tensor methods,
the output. A submodule that cannot be followed becomes one opaque operation, which stays as it is.
"""

import inspect
from collections import OrderedDict
from contextlib import contextmanager

import torch
from torch import fx

from psp.errors import ExtractError
from psp.extraction.answers import Answers, Asking
from psp.extraction.names import check_names, renamed
from psp.kernels.spread import Spread
from psp.method.graph import line_of


class Tracer(fx.Tracer):
    """Traces into every module but torch's own and those in `opaque`; remembers the innermost one that failed.

    Without arguments: as torch.load makes it, to read a graph that was saved.

    Args:
        answers: the `Answers` to questions, or None: then there are none.
        opaque: names of modules that are not to be traced into.
        by_example: whether the example alone may answer what depends on the size and is asked outside of any submodule.
    """

    def __init__(self, answers=None, opaque=(), by_example=False):
        super().__init__()
        self.answers, self.opaque = answers, opaque
        self.by_example, self.decided, self.asked = by_example, [], False
        self.failed, self.answering = None, False
        self.autocast = _autocast()

    def is_leaf_module(self, module, name):
        ours = getattr(module, "made_by_extract", False) and not isinstance(module, Spread)  # whose code is the user's
        return ours or name in self.opaque or super().is_leaf_module(module, name)

    def call_module(self, module, forward, args, kwargs):
        if self.answering:
            return forward(*args, **kwargs)
        self._check_autocast()  # here it is the caller that fails
        try:
            return super().call_module(module, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or self.path_of_module(module)
            raise

    def getattr(self, name, value, cache):
        return value if self.answering else super().getattr(name, value, cache)

    def create_node(self, *args, **kwargs):
        self._check_autocast()
        return super().create_node(*args, **kwargs)

    def _check_autocast(self):
        if _autocast() != self.autocast:
            raise AutocastError("it enters torch.autocast, for which a graph has no place")

    def create_arg(self, value):
        if type(value) is not OrderedDict:
            return super().create_arg(value)
        return self.create_node("call_function", OrderedDict, (super().create_arg(list(value.items())),), {})

    def proxy(self, node):
        return Asking(node, self)

    def to_bool(self, proxy):
        return self.ask(proxy, bool)

    def iter(self, proxy):
        return iter([proxy[i] for i in range(self.ask(proxy, len))])

    def ask(self, proxy, question):
        """What `question` says of the value of `proxy`. Raises TraceError where no answer holds for all sizes."""
        if self.answers is None:
            raise fx.proxy.TraceError("its value is not known here")
        self.answering = self.asked = True
        try:
            answers = self.answers.of(proxy.node, question)
        except Exception as error:  # whatever an operation may raise that finds no numbers
            raise fx.proxy.TraceError("what it does depends on the numbers in its tensors") from error
        finally:
            self.answering = False
        if len(set(answers)) > 1:
            if not self.by_example or self.scope.module_path:
                raise DependsOnSizeError("what it does depends on the size of the input")
            self.decided.append(proxy.node)
        return answers[0]


def _autocast():
    """The types that autocast computes in, of each kind of device where it is on."""
    return {kind: torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)}


class AutocastError(fx.proxy.TraceError):
    """Code under an autocast of its own."""


class DependsOnSizeError(fx.proxy.TraceError):
    """A question whose answer is another one on a larger input."""


def trace(model, inputs=None):
    """`model` as an fx.GraphModule that shares its submodules.

    A submodule whose code torch.fx cannot follow (a branch on the data, say) becomes one opaque operation. With
    `inputs`, a tuple of tensors, the example answers what the code asks about shapes; arguments of `forward` that it
    does not have are held at their defaults. Where the code of `model` itself does other things on another size, what
    is traced is for the example's size alone, and meta["fixed"] of the result is True; meta["asked"] is where
    it asks at all. Submodules have names that a graph may have (`free_name`).

    Raises ExtractError, naming the line, if the code of `model` itself cannot be followed, or for a name that no graph
    can have.
    """
    check_names(model)
    opaque, held = set(), {} if inputs is None else _defaults(model, len(inputs))
    answers, by_example = None if inputs is None else Answers(model, inputs, held), False
    while True:
        tracer = Tracer(answers, opaque, by_example)
        try:
            with _unchanged(model):
                graph = _without(tracer.trace(model, dict(held.values()) or None), held)
            network = fx.GraphModule(renamed(model, graph), _by_position(graph))
            network.training = model.training  # which a dictionary of parts does not tell
            network.meta["fixed"], network.meta["asked"] = bool(tracer.decided), tracer.asked
            return network
        except Exception as error:
            if tracer.failed is not None and tracer.failed not in opaque:
                opaque.add(tracer.failed)
            elif isinstance(error, DependsOnSizeError) and not by_example:
                by_example = True
            else:
                raise ExtractError(
                    f"torch.fx cannot follow the forward of {type(model).__name__}{line_of(error)}: {error}. "
                    f"{_remedy(error)}"
                ) from error


@contextmanager
def _unchanged(model):
    """What a network's code assigns to its modules while it is traced is no tensor: they get back what they had.

    The network is a copy already (psp.method.graph, which looks at the user's own, makes one instead of this); what
    torch.fx adds to it, such as constants, has to stay, since `Answers` needs it.
    """
    stores = [store for module in model.modules() for store in (module.__dict__, module._buffers)]
    before = [dict(store) for store in stores]
    try:
        yield
    finally:
        for store, values in zip(stores, before, strict=True):
            for name in [name for name, value in store.items() if isinstance(value, fx.Proxy)]:
                del store[name]
                store.update({name: values[name]} if name in values else {})


def _remedy(error):
    """What to do about an error of tracing."""
    if "item assignment" in str(error):
        return "Make a new tensor instead of writing into one, as by torch.where or torch.cat"
    if isinstance(error, AutocastError):
        return "Call the network within torch.autocast, or move what enters it into a submodule of its own"
    if isinstance(error, TypeError):  # a function of torch's own that does not take what stands for a number
        return "Make new tensors of those that are there, as by x.new_zeros(…), and move other code into a submodule"
    return "Move the code that depends on the data into a submodule of its own"


def _defaults(model, given):
    """{place of an argument of `forward`: (name, default)} of those that are not given and have a plain default.

    Places are torch.fx's, to which *args and **kwargs come last.
    """
    plain = (bool, int, float, str, type(None))
    arguments = inspect.signature(model.forward).parameters.values()
    named = enumerate(a for a in arguments if a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD))
    free = ((i, a) for i, a in named if i >= given or a.kind is a.KEYWORD_ONLY)
    return {i: (a.name, a.default) for i, a in free if isinstance(a.default, plain)}


def _without(graph, held):
    """`graph` without the arguments at the places `held` and torch.fx's checks of what these are held at."""
    arguments = [node for node in graph.nodes if node.op == "placeholder"]
    for place in held:
        _erase(graph, arguments[place])
    return graph


def _erase(graph, node):
    for user in list(node.users):
        _erase(graph, user)
    graph.erase_node(node)


def _by_position(graph):
    """`graph` with layer(input=x) written as layer(x), the one form that the rules know."""
    for node in graph.nodes:
        if node.op == "call_module" and not node.args and set(node.kwargs) == {"input"}:
            node.args, node.kwargs = (node.kwargs["input"],), {}
    return graph
