"""Files as a bad disk or a broken transfer leaves them."""


def flipped(content, *bits):
    """`content` with the bits of these numbers, counted from its beginning, the other way round."""
    damaged = bytearray(content)
    for bit in bits:
        damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)
