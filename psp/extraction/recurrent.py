"""Recurrent layers: what they read of their input; what they put out depends on all of it, step after step."""

from torch import nn

from psp.extraction.ops import Op

RECURRENT = (nn.RNN, nn.LSTM, nn.GRU)


class Recurrent(Op):
    """An LSTM, GRU or RNN on sequences of features, the last axis: a constant feature goes into the first biases."""

    def __init__(self, node, module):
        super().__init__(node, module)
        self.read = node.args[0]
        self.names = [name for name in ("weight_ih_l0", "weight_ih_l0_reverse") if hasattr(module, name)]

    def backward(self, known, wanted):
        channels = known[self.read]
        read = sum(getattr(self.module, name).ne(0).any(0) for name in self.names).bool()
        yield self.read, channels.at_least_one(read & channels.live)
        yield from ((other, mask) for other, mask in super().backward(known, wanted) if other is not self.read)

    def emit(self, builder, wanted):
        x, carried = builder.about(self.read, builder.wanted[self.read])
        arguments = {n: builder.whole(n) for n in self.node.all_input_nodes[1:]} | {self.read: x}
        builder.network.set_submodule(self.node.target, self.smaller(builder.known[self.read], carried))
        return builder.copy(self.node, arguments), wanted | True

    def smaller(self, channels, carried):
        """The layer for the features `carried` alone, the effect of all others in its biases."""
        old = self.module
        names = ("hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
        names += ("nonlinearity",) * (type(old) is nn.RNN)
        layer = type(old)(int(carried.sum()), **{name: getattr(old, name) for name in names}).to(channels.value)
        state = dict(old.state_dict())
        for name in self.names:
            weight = state[name]
            state[name] = weight[:, carried]
            bias = name.replace("weight", "bias")
            state[bias] = state[bias] + weight[:, ~carried] @ channels.value[~carried]
        layer.load_state_dict(state)
        return layer.eval()
