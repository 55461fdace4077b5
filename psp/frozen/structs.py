"""The structures of lanes.c and pixels.c for ctypes, field by field."""

import ctypes

ALIGNMENT = 64  # bytes, as many as the longest vector has


def fields(integers, pointers=""):
    numbers = [(name, ctypes.c_int64) for name in integers.split()]
    return numbers + [(name, ctypes.c_void_p) for name in pointers.split()]


class Map(ctypes.Structure):
    _fields_ = fields("begin height width channels stride_h stride_w", "index")


class Region(ctypes.Structure):
    _fields_ = fields("top bottom left right steps", "offset weight")


class Operation(ctypes.Structure):
    _fields_ = fields(
        "kind activation regions own out out_h out_w out_c kernel_h kernel_w pad_h pad_w count_padding",
        "region bias scale table",
    )
    _fields_ += [("x", Map), ("other", Map)]


class Program(ctypes.Structure):
    _fields_ = fields(
        "images operations memory threads x channels height width stride_n stride_c stride_h stride_w y outputs",
        "operation",
    )


class Planes(ctypes.Structure):
    """`map` of pixels.h."""

    _fields_ = fields("begin plane pitch height width stride_h stride_w rows", "index place row")


class PixelOperation(ctypes.Structure):
    """`operation` of pixels.h."""

    _fields_ = fields("kind activation own out plane channels height width pitch vectors")
    _fields_ += fields("kernel_h kernel_w pad_h pad_w count_padding steps tiled high deep direct")
    _fields_ += fields("", "mask offset order table weight tile start bias scale")
    _fields_ += [("x", Planes), ("other", Planes)]


class PixelProgram(ctypes.Structure):
    """`program` of pixels.c."""

    _fields_ = fields("images alone operations memory threads tiles")
    _fields_ += fields("x plane pitch channels height width stride_n stride_c stride_h stride_w")
    _fields_ += fields("y y_plane y_pitch y_channels y_height y_width window", "operation")
