"""A network as the short list of operations that `lanes.c` and `pixels.c` run.

Most of a graph is no work of its own. What selects channels or pixels, puts in constants, scales or concatenates is
only noted in a `Value`, and the next convolution or sum reads from where that says. A ReLU belongs to the operation
before it, a residual sum to the convolution whose output it adds. Zeros are left out.
"""

import functools
import operator
from types import SimpleNamespace

import torch
from torch import fx, nn
from torch.nn import functional as F

from psp.errors import KernelError
from psp.extraction.graph import describe
from psp.extraction.rewrite import SelectChannels
from psp.extraction.smallest import pads
from psp.frozen.values import COMBINE, CONV, POOL_MAX, POOL_MEAN, Operation, Value
from psp.kernels.columns import ColumnSparseConv2d, nonzero_columns


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
        except Exception as error:  # an argument or a type that a rule below doesn't know
            raise KernelError(f"{describe(node)} cannot be run with images as lanes; run the network itself") from error
        return value._replace(alone=value.alone and len(node.users) == 1) if isinstance(value, Value) else value

    def call_module(self, target, args, kwargs):
        module = self.fetch_attr(target)
        return self.apply(MODULES[type(module)], *args, module)

    def call_function(self, target, args, kwargs):
        return self.apply(FUNCTIONS[target], *args, **kwargs)

    def call_method(self, target, args, kwargs):
        return self.apply(FUNCTIONS[target], *args, **kwargs)

    def apply(self, rule, *args, **kwargs):
        spread = any(isinstance(x, Value) and x.flat and x.size != (1, 1) for x in args)
        require(not spread or rule in (Planner.linear, Planner.same))
        return rule(self, *args, **kwargs)

    def output(self, target, args, kwargs):
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
        constant = sum(v.constant for v in values)
        made = self.add_operation(COMBINE, *values[0].size, len(constant), reads=list(values), bias=constant)
        return made._replace(flat=values[0].flat)

    def relu(self, x, inplace=False):
        x = x if x.alone and x.unchanged and x.source.kind is not None else self.combine(x)
        x.source.relu = True
        return x._replace(constant=x.constant.clamp(min=0))

    def add(self, x, y):
        x, y = (x, y) if isinstance(x, Value) else (y, x)
        if isinstance(y, torch.Tensor):
            require(y.shape[1] == y.numel() == len(x.index))
            return x._replace(constant=x.constant + y.detach().flatten())
        require(x.size == y.size and len(x.index) == len(y.index))
        for branch, shortcut in ((x, y), (y, x)):
            if self.can_add(branch, shortcut):
                branch.source.reads.append(shortcut)
                branch.source.bias = branch.source.bias + branch.constant + shortcut.constant
                return Value.of(branch.source)._replace(flat=branch.flat)
        x, y = (x, y) if y.unscaled else (y, x)
        return self.combine(x, y if y.unscaled else self.plain(y))

    def can_add(self, branch, shortcut):
        """Whether the convolution `branch` can add `shortcut`, which has to be there before it, to its own output."""
        source, order = branch.source, self.operations.index
        free = source.kind == CONV and len(source.reads) == 1 and branch.alone and not source.relu
        whole = branch.whole and branch.unscaled and shortcut.unscaled
        return free and whole and order(shortcut.source) < order(source)

    def same(self, x, module):
        return x

    def convolution(self, x, module):
        if isinstance(module, ColumnSparseConv2d):
            around = [(p, p) for p in module.padding]
            return self.columns(x, module, module.weight, module.channels, module.taps, around, module.relu)
        require(module.groups == 1 and module.padding_mode == "zeros")
        return self.columns(x, module, *nonzero_columns(module.weight), pads(module))

    def padded_convolution(self, x, module):
        pad, conv = module
        require(type(pad) is nn.ZeroPad2d and type(conv) is nn.Conv2d and not any(conv.padding) and conv.groups == 1)
        left, right, top, bottom = pad.padding
        return self.columns(x, conv, *nonzero_columns(conv.weight), [(top, bottom), (left, right)])

    def linear(self, x, module):
        require(x.flat)
        weight = module.weight.view(module.out_features, -1, *x.size)
        layer = SimpleNamespace(kernel_size=x.size, stride=(1, 1), dilation=(1, 1), bias=module.bias)
        return self.columns(x, layer, *nonzero_columns(weight), [(0, 0), (0, 0)])._replace(flat=True)

    def columns(self, x, layer, weight, channels, taps, around, relu=False):
        """A convolution by its columns; outputs without weights are constants. `around`: padding of both axes."""
        x = x if x.unscaled and not x.constant[channels].any() else self.combine(x)
        size = [
            (length + sum(pad) - step * (taps_in_all - 1) - 1) // stride + 1
            for length, pad, step, taps_in_all, stride in zip(
                x.size, around, layer.dilation, layer.kernel_size, layer.stride, strict=True
            )
        ]
        weight = weight.detach().double()
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
        rows, read = weight.ne(0).any(1), x.index[channels] >= 0
        rows[0] |= not rows.any()  # there are no maps without channels
        made = self.add_operation(
            CONV, *size, int(rows.sum()), reads=[x], bias=bias[rows], relu=relu, kernel=layer.kernel_size,
            stride=layer.stride, dilation=layer.dilation, before=[a for a, _ in around],
            weight=weight[rows][:, read], columns=x.index[channels[read]], taps=taps[read],
        )  # fmt: skip
        places = torch.where(rows, rows.cumsum(0), len(made.index) + (~rows).cumsum(0)) - 1
        constants = bias[~rows].clamp(min=0) if relu else bias[~rows]
        return made.extended(0, constants).selected(places)

    def norm(self, x, module):
        scale = (module.running_var + module.eps).double().rsqrt() * (1 if module.weight is None else module.weight)
        shift = (0 if module.bias is None else module.bias) - module.running_mean * scale
        return x._replace(scale=(x.scale * scale).detach(), constant=(x.constant * scale + shift).detach())

    def select(self, x, module):
        require(module.axis == 1)
        constants = x.constant[:0] if module.constants is None else module.constants.flatten()
        return x.extended(0, constants).selected(module.index)

    def pad(self, x, pads, mode="constant", value=None):
        *space, front, back = pads
        require(mode == "constant" and not value and not any(space) and min(front, back) >= 0)
        require(len(space) == (0 if x.flat else 4))
        return x.extended(front, torch.zeros(back))

    def getitem(self, x, index):
        rows, columns = index[2:]
        require(index[:2] == (slice(None),) * 2 and not x.flat)
        require(all(not i.start and i.stop is None for i in (rows, columns)))
        steps = rows.step or 1, columns.step or 1
        height, width = (-(-length // step) for length, step in zip(x.size, steps, strict=True))
        return x._replace(height=height, width=width, step=tuple(a * b for a, b in zip(x.step, steps, strict=True)))

    def cat(self, values, dim=0):
        require(dim == 1 and not any(v.flat for v in values))
        counts = [len(v.index) for v in values]
        placed = [v.extended(sum(counts[:i]), torch.zeros(sum(counts[i + 1 :]))) for i, v in enumerate(values)]
        return functools.reduce(self.add, placed)

    def pool(self, x, kernel, stride=None, padding=0, *, kind=POOL_MEAN, count_padding=True):
        require(not x.flat)
        kernel, before, x = pair(kernel), pair(padding), self.plain(x)
        stride = pair(stride or kernel)
        size = [(x.size[i] + 2 * before[i] - kernel[i]) // stride[i] + 1 for i in (0, 1)]
        options = {"kernel": kernel, "stride": stride, "before": before, "count_padding": count_padding}
        return self.add_operation(kind, *size, len(x.index), reads=[x], **options)

    def mean_pool(self, x, module):
        require(not module.ceil_mode and module.divisor_override is None)
        options = module.kernel_size, module.stride, module.padding
        return self.pool(x, *options, count_padding=module.count_include_pad)

    def max_pool(self, x, kernel, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
        require(pair(dilation) == (1, 1) and not ceil_mode and not return_indices)
        return self.pool(x, kernel, stride, padding, kind=POOL_MAX)

    def global_pool(self, x, size):
        require(pair(size) == (1, 1))
        return self.pool(x, x.size)

    def mean(self, x, dim, keepdim=False):
        require(sorted(d % 4 for d in dim) == [2, 3])
        return self.pool(x, x.size)._replace(flat=not keepdim)

    def flatten(self, x, start_dim=0, end_dim=-1):
        require(start_dim == 1 and end_dim in (-1, 3))
        return x._replace(flat=True)


MODULES = {
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout2d), Planner.same),
    **dict.fromkeys((nn.Conv2d, ColumnSparseConv2d), Planner.convolution),
    nn.Sequential: Planner.padded_convolution,  # psp.extract makes it of a kernel whose center is elsewhere
    nn.Linear: Planner.linear,
    nn.BatchNorm2d: Planner.norm,
    nn.ReLU: lambda planner, x, module: planner.relu(x),
    nn.MaxPool2d: lambda planner, x, m: planner.max_pool(
        x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices
    ),
    nn.AvgPool2d: Planner.mean_pool,
    nn.AdaptiveAvgPool2d: lambda planner, x, module: planner.global_pool(x, module.output_size),
    nn.Flatten: lambda planner, x, module: planner.flatten(x, module.start_dim, module.end_dim),
    SelectChannels: Planner.select,
}
FUNCTIONS = {
    **dict.fromkeys((F.relu, torch.relu, "relu"), Planner.relu),
    **dict.fromkeys((torch.add, operator.add), Planner.add),
    **dict.fromkeys((torch.flatten, "flatten"), Planner.flatten),
    F.pad: Planner.pad,
    F.avg_pool2d: Planner.pool,
    F.max_pool2d: Planner.max_pool,
    F.adaptive_avg_pool2d: Planner.global_pool,
    operator.getitem: Planner.getitem,
    torch.cat: Planner.cat,
    "mean": Planner.mean,
}


def require(condition):
    """Raise ValueError, which `Planner.run_node` turns into the error for users, unless the condition holds."""
    if not condition:
        raise ValueError


def pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)
