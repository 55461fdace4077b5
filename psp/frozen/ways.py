"""What the ways to run a plan have in common: the memory that their C structures point to, and one call."""

import ctypes

import torch
from torch.nn.functional import pad

from psp.errors import KernelError
from psp.frozen.structs import ALIGNMENT

LARGEST = 2**31 - 1
MACROS = {torch.float32: (), torch.bfloat16: ("-DBFLOAT16",)}


def distances(tensor):
    """Distances in memory as the kernels read them, of 32 bits. Raises KernelError for a map too large for that."""
    if tensor.numel() and max(int(tensor.max()), -int(tensor.min())) > LARGEST:
        raise KernelError("a map of the network has too many values for freeze; freeze it for smaller images")
    return tensor.int()


class Way:
    """A plan made ready to run. Not for several threads of Python at a time.

    A subclass has `kind`, a text; `size`, height, width and channels of the output; `rounds(images, threads)`, the
    time of a batch in units of what one thread takes for `example` images; `run(x, y, threads)`.
    """

    def __init__(self, dtype):
        self.dtype = dtype
        self.kept = []  # what pointers point to
        self.memory = torch.zeros(0, dtype=torch.uint8)

    def __str__(self):
        return f"{self.kind}, {str(self.dtype).removeprefix('torch.')}"

    def __call__(self, x, threads):
        """N×H×W×C of N×C×H×W images, in this way's type."""
        y = self.outputs(len(x))
        self.run(x.to(self.dtype).resolve_neg(), y, threads)
        return y

    def outputs(self, images):
        return torch.empty(images, *self.size, dtype=self.dtype)

    def room(self, size):
        """Address of so many bytes, zeros at first, that stay from call to call."""
        if len(self.memory) < size + ALIGNMENT:
            self.memory = torch.zeros(size + ALIGNMENT, dtype=torch.uint8)
        return -(-self.memory.data_ptr() // ALIGNMENT) * ALIGNMENT

    def fill(self, made, o):
        """Write what the structures of all ways say of an operation alike into `made`."""
        made.kind, made.activation, made.own, made.count_padding = o.kind, o.activation, o.own, o.count_padding
        (made.kernel_h, made.kernel_w), (made.pad_h, made.pad_w) = o.kernel, o.before
        if o.bias is not None:
            made.bias = self.pointer(pad(o.bias.float(), (0, 1)))  # the last channel may be the first of a pair
        if o.scale is not None:
            made.scale = self.pointer(o.scale.float())
        if o.table is not None:
            made.table = self.pointer(o.table.int())
        return made

    def pointer(self, tensor):
        """Address of a tensor that lives as long as this."""
        self.kept.append(tensor.contiguous())
        return self.kept[-1].data_ptr()

    def array(self, kind, items):
        """Address of an array of structures that lives as long as this."""
        items = list(items)
        self.kept.append((kind * len(items))(*items))
        return ctypes.addressof(self.kept[-1])
