"""From a masked network to a physically smaller one that computes the same.

Zeros save nothing until they are taken out. What is left of the network is found in four steps, each exact, whose
details are in `psp/extraction/`:

1. graph: the network, folded, as a graph of operations; batch normalization goes into the convolutions.
2. channels: forward, which channels are live and which are constants; backward, which of them anybody reads.
3. rewrite: the graph once more, with those channels alone that are live and read. A residual branch of constants,
   for example, is no more than a constant added to the sum, and all its layers are gone.
4. layers: every convolution that is left becomes the smallest that has its nonzero weights.

All of it runs in float64, and the result is compared with the network, on the example and on random values beside it,
before it is handed out; and on other sizes, where one that is another function there than the network refuses all but
the example's.
"""

import copy
from contextlib import contextmanager, nullcontext

import torch
from torch.utils._pytree import tree_map_only

from psp.errors import ExtractError
from psp.extraction.channels import ask, follow
from psp.extraction.checks import drop_checks
from psp.extraction.compare import (
    accepted,
    check_batch,
    check_finite,
    compare,
    disagreement,
    in_same_types,
    same_but_for_rounding,
    with_noise,
)
from psp.extraction.cost import left_parameters
from psp.extraction.examples import another_batch, other_sizes, twice_the_size
from psp.extraction.explain import explanation, note
from psp.extraction.graph import fold_batchnorm_, make_pure
from psp.extraction.heads import drop_heads
from psp.extraction.kinds import classify
from psp.extraction.plain import use_layers
from psp.extraction.polish import polish
from psp.extraction.preconditions import as_inputs, check, check_evaluation, check_plain
from psp.extraction.rewrite import Builder
from psp.extraction.shapes import find_flattens, find_shapes, fix_size
from psp.extraction.storage import store_nonzero
from psp.extraction.tied import tie
from psp.extraction.trace import trace
from psp.method.fold import fold


def extract(model, example_input):
    """A new, physically smaller network with the outputs of `model`, in which the pruned structures are gone.

    Zero weights decide, not the structure that they were pruned by. `model` stays as it is.

    Args:
        model: a parameterized network in evaluation mode, of any architecture that torch.fx can trace. Operations that
            are not known here keep all their inputs and outputs.
        example_input: a tensor, the axis of the batch first, such as images N×channels×height×width; or a tuple of the
            first arguments of `forward`, of which others are held at their defaults. The new network is for images of
            any size and batches of any length that `model` takes.

    Where the new network would be another function than `model` on other sizes, it is for that of the example alone and
    refuses others: `psp.explain` says which it is for. Tried are sizes of one pixel, or step, more and of half as many;
    code that does something else beyond a size of its own, such as 12 pixels, is not found out by them.

    Returns a torch.fx.GraphModule in evaluation mode, of the type and on the device of `model`. Its modules are called
    as in `model`, but those with a name that a graph or Python needs for itself: code_ for code, heads.in_ for
    heads.in. All of its parameters are new, and can be trained; but batch normalization has gone into the layers before
    it, and dropout is gone. To train on as before, do so before extraction, with requires_grad_(False) on
    psp.structure_parameters(model).values().

    Raises:
        ExtractError: the model is not parameterized, in training mode, wrapped (DataParallel, torch.compile, …), has
            forward hooks or weights of several types; the example does not fit it (the layer is named), its outputs are
            not finite, or the network has something in it that cannot be made smaller with exactly the same outputs,
            such as other code for one image than for several.
    """
    check(model)
    inputs = as_inputs(example_input)
    with plainly("cpu"), nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
        smaller = smallest(model, inputs)
    return in_its_type(smaller, model, inputs)


@contextmanager
def plainly(device_type):
    """Without what a caller may have switched on: gradients, inference mode, autocast."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device_type, enabled=False):
        yield


def smallest(model, inputs):
    """What `extract` returns, in float64 on the CPU, and compared with `model` there."""
    itself = copied(model).to("cpu", torch.float64)
    masked = fold(copied(itself))
    network = traced(masked, inputs)
    shown = [inputs, with_noise(inputs)]
    expected = [itself(*(x.clone() for x in values)) for values in shown]  # a forward may write into its input
    check_finite(expected[0])
    batch, sizes = accepted(masked, [another_batch(shown[1])]), accepted(masked, other_sizes(shown[1]))
    sizes = sizes or accepted(masked, twice_the_size(shown[1]))
    smaller = rewritten(network)
    tie(smaller, model)
    if left_parameters(smaller) > left_parameters(model):
        store_nonzero(smaller)
    for values, outputs in zip(shown, expected, strict=True):
        compare(smaller(*values), outputs)
    check_batch(smaller, batch)
    untried = network.meta["asked"] and not sizes
    if network.meta["fixed"] or untried or disagreement(smaller, sizes):
        fix_size(smaller, inputs)
    note(smaller, explanation(model, network, smaller))
    return smaller.eval()


def traced(masked, inputs):
    """The graph of a folded network, with the shapes of all values; heads of attention that do nothing are gone."""
    headless, all_heads = drop_heads(masked, inputs)
    network = trace(headless, inputs)
    network.meta["all heads"] = all_heads
    find_shapes(network, inputs)
    return network


def rewritten(network):
    """The smaller network of a graph, which is changed on the way: the steps at the head of this file."""
    make_pure(network)
    drop_checks(network)
    use_layers(network)
    fold_batchnorm_(network)
    find_flattens(network)
    classify(network)
    known = follow(network.graph)
    wanted = ask(network.graph, known)
    return polish(Builder(network, known, wanted).build())


def copied(model):
    """A copy of a network. Raises ExtractError for one that cannot be copied."""
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        raise ExtractError(
            f"{type(model).__name__} cannot be copied ({error}); if it keeps a tensor that waits for its gradient, "
            "such as an activation, remove that first"
        ) from error


def in_its_type(smaller, model, inputs):
    """`smaller` of the type and on the device of `model`, and tried there.

    What its code asked of its parameters, their type and device, was answered for float64 on the CPU: where it does not
    run so, these become the model's. Raises ExtractError where its outputs have other types even then, or other values
    than rounding gives.
    """
    like = next(p for p in model.parameters() if p.is_floating_point())
    with plainly(like.device.type):
        smaller = smaller.to(like.device, like.dtype)
        own = [x.to(like.device, like.dtype if x.is_floating_point() else x.dtype) for x in inputs]
        tried = accepted(copied(model), [own])
        pairs = in_same_types(smaller, tried)
        if pairs is None:
            answer_for(smaller, {torch.float64: like.dtype, torch.device("cpu"): like.device})
            pairs = in_same_types(smaller, tried)
            if pairs is None:
                raise ExtractError(
                    f"the smaller network does not give its outputs in the types of the masked one, in {like.dtype} on "
                    f"{like.device}: its forward names types or devices; let it take those of its input"
                )
        if not all(same_but_for_rounding(*pair) for pair in pairs):
            raise ExtractError(
                f"the network's forward computes something else in {like.dtype} on {like.device} than in float64 on "
                "the CPU, in which it is extracted: take what asks for a tensor's type or device out of it"
            )
    return smaller


def answer_for(network, meant):
    """Replace types and devices in the arguments of its operations by what was `meant`, a mapping, in place."""
    for node in network.graph.nodes:
        given = node.args, node.kwargs
        node.args, node.kwargs = tree_map_only((torch.dtype, torch.device), lambda x: meant.get(x, x), given)
    network.recompile()


@torch.no_grad()
def fold_batchnorm(model):
    """The network with every batch normalization folded into the convolution right before it.

    What a dense network is to be compared with: evaluation-mode batch normalization costs nothing there either.
    `model`, in evaluation mode, parameterized or not, stays as it is. Returns a torch.fx.GraphModule.
    """
    check_plain(model)
    check_evaluation(model)
    network = trace(fold(copy.deepcopy(model)))
    fold_batchnorm_(network)
    return network.eval()
