"""A network as the short list of operations that `lanes.c` and `pixels.c` run.

Operator fusion: most of a graph is no work of its own. What selects channels or pixels, puts in constants, scales or
concatenates is only noted in a `Value`, and the next convolution or sum reads from where that says. A ReLU belongs to
the operation before it, a residual sum to the convolution whose output it adds. Zeros are left out.
"""

from torch import fx
from torch.utils._pytree import tree_map_only

from psp.errors import KernelError
from psp.extraction.graph import describe
from psp.frozen.rules import CHANNELS_LAST, FLAT, FUNCTIONS, MODULES
from psp.frozen.values import COMBINE, Operation, Value, require
from psp.kernels.spread import kind_of


class Planner(fx.Interpreter):
    """Runs a graph on `Value`s instead of tensors; `operations` is what there is to compute, first of all the input.

    Raises KernelError, which names the operation, for one that has no place here.
    """

    def __init__(self, network, channels, height, width):
        super().__init__(network)
        self.operations = [Operation(None, height, width, channels)]
        self.args_iter = iter([Value.of(self.operations[0])])
        for node in network.graph.nodes:  # as Interpreter.run, which would add to our message
            self.env[node] = self.result = self.run_node(node)

    def run_node(self, node):
        try:
            value = super().run_node(node)
        except Exception as error:  # an argument or a type that a rule doesn't know
            raise KernelError(f"{describe(node)} cannot be run by psp.freeze; run the network itself") from error
        return value._replace(alone=value.alone and len(node.users) == 1) if isinstance(value, Value) else value

    def call_module(self, target, args, kwargs):
        module = self.fetch_attr(target)
        if not has_value(args, kwargs):  # a weight that is stored without its zeros
            return module(*args, **kwargs)
        return self.apply(MODULES[kind_of(module)], *args, module)

    def call_function(self, target, args, kwargs):
        found = has_value(args, kwargs)
        return self.apply(FUNCTIONS[target], *args, **kwargs) if found else target(*args, **kwargs)

    def call_method(self, target, args, kwargs):
        found = has_value(args, kwargs)
        return self.apply(FUNCTIONS[target], *args, **kwargs) if found else super().call_method(target, args, kwargs)

    def apply(self, rule, *args, **kwargs):
        values = [x for x in args if isinstance(x, Value)]
        require(rule in FLAT or not any(x.flat and x.size != (1, 1) for x in values))
        require(rule in CHANNELS_LAST or not any(x.last for x in values))
        return rule(self, *args, **kwargs)

    def output(self, target, args, kwargs):
        require(not args[0].last)
        return self.plain(args[0])

    def add_operation(self, kind, height, width, channels, **fields):
        require(height > 0 and width > 0)
        self.operations.append(Operation(kind, height, width, channels, **fields))
        return Value.of(self.operations[-1])

    def plain(self, x):
        """`x` as all that an operation puts out."""
        return x if x.whole and x.unchanged else self.combine(x)

    def combine(self, *values):
        """The sum of one or two values as an operation of its own; only the first may be scaled."""
        constant, scale = sum(v.constant for v in values), values[0].scale
        options = {"reads": list(values), "bias": constant, "scale": scale}
        made = self.add_operation(COMBINE, *values[0].size, len(constant), **options)
        return made._replace(flat=values[0].flat, last=values[0].last)


def has_value(*args):
    """Whether anything in nested arguments depends on the images."""
    found = []
    tree_map_only(Value, found.append, args, is_leaf=lambda x: isinstance(x, Value))
    return bool(found)
