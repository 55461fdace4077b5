"""The structures of lanes.c for ctypes, field by field."""

import ctypes


def fields(integers, pointers=""):
    numbers = [(name, ctypes.c_int64) for name in integers.split()]
    return numbers + [(name, ctypes.c_void_p) for name in pointers.split()]


class Map(ctypes.Structure):
    _fields_ = fields("begin height width channels stride_h stride_w", "index")


class Region(ctypes.Structure):
    _fields_ = fields("top bottom left right steps", "offset weight")


class Operation(ctypes.Structure):
    _fields_ = fields(
        "kind relu regions out out_h out_w out_c kernel_h kernel_w pad_h pad_w count_padding", "region bias scale"
    )
    _fields_ += [("x", Map), ("other", Map)]


class Program(ctypes.Structure):
    _fields_ = fields(
        "images operations memory threads x channels height width stride_n stride_c stride_h stride_w y outputs",
        "operation",
    )
