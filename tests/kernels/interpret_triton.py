"""Run with TRITON_INTERPRET=1: the Triton kernel against PyTorch's convolution; prints the number of cases."""

import torch
from convolutions import case

from psp.kernels import gpu

CASES = [  # images, channels in and out, size, kernel, stride, padding, dilation, share of columns kept
    (1, 3, 5, (7, 9), (3, 3), (1, 1), (1, 1), (1, 1), 0.5),
    (2, 16, 33, (8, 8), (3, 3), (2, 2), (1, 1), (1, 1), 0.24),
    (3, 5, 70, (9, 7), (3, 2), (2, 3), (2, 0), (1, 2), 0.5),
    (2, 4, 1, (6, 6), (1, 1), (1, 1), (0, 0), (1, 1), 1.0),
    (1, 2, 16, (5, 5), (3, 3), (1, 1), (1, 1), (2, 2), 0.0),
]


def main():
    for number, settings in enumerate(CASES):
        for x_form in (torch.contiguous_format, torch.channels_last):
            bias, relu = bool(number % 2), bool(number % 3)
            x, columns, options, expected = case(*settings, seed=number, bias=bias)
            expected = expected.relu() if relu else expected
            out = torch.full_like(expected, torch.nan, dtype=torch.float32, memory_format=torch.channels_last)
            gpu.run(out, x.contiguous(memory_format=x_form), *columns, *options.values(), relu)
            torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    print(2 * len(CASES))


main()
