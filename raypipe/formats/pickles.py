"""Reads the pickles that verification sets are, by an interpreter that can build nothing else.

`pickle.Unpickler` with a strict `find_class` runs no foreign code, yet a file of a few bytes can
make it allocate gigabytes: by the length of a string, the index of a memo entry (CPython issue
115952), the shape of an array. Here a value is no larger than the bytes of the file that it came
from, the number of values is bounded by the file's size, and numpy arrays stay bytes with a shape.
The opcodes are those of the standard library's pickletools; of all names that a pickle can mention
only the six that arrays of numpy need have a meaning, and none is ever imported.
"""

import codecs
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import numpy as np

from raypipe.errors import UserError

# A value costs Python about 100 bytes, however few it has in the file; 100,000 are 10 MB. A real
# set has some 12 values for an image of 2,000 bytes or more.
_FREE_VALUES = 100_000
_BYTES_PER_VALUE = 64
_SHOWN = 60


class _Name(Enum):
    RECONSTRUCT = auto()
    SCALAR = auto()
    NDARRAY = auto()
    DTYPE = auto()
    FROMBUFFER = auto()
    ENCODE = auto()


_NAMES = {
    ("numpy", "ndarray"): _Name.NDARRAY,
    ("numpy", "dtype"): _Name.DTYPE,
    ("_codecs", "encode"): _Name.ENCODE,
}
for _core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    _NAMES[(f"{_core}.multiarray", "_reconstruct")] = _Name.RECONSTRUCT
    _NAMES[(f"{_core}.multiarray", "scalar")] = _Name.SCALAR
    _NAMES[(f"{_core}.numeric", "_frombuffer")] = _Name.FROMBUFFER
_DTYPE = re.compile(r"b1|[iu][1248]")


class PickleError(ValueError):
    """What is wrong with a pickle, without its place."""


@dataclass(slots=True)
class _Dtype:
    code: str
    order: str = "="


@dataclass(slots=True)
class Array:
    """A numpy array as it stands in a pickle: nothing has been allocated for its shape."""

    data: Any = b""
    dtype: Any = None
    shape: Any = ()

    def values(self) -> np.ndarray:
        """A view of the data, bool or integer (n,), of an array of shape (n,), (n, 1) or (1, n).

        Raises:
            PickleError: where it has another type or shape, or not as many bytes as that takes.
        """
        if not isinstance(self.dtype, _Dtype) or not isinstance(self.data, bytes):
            raise PickleError("an array that is neither of integers nor of truth values")
        dtype = np.dtype(self.dtype.order + self.dtype.code)
        shape = self.shape if isinstance(self.shape, tuple) else ()
        if not 1 <= len(shape) <= 2 or not all(type(side) is int for side in shape):
            raise PickleError("an array of another shape than (n,) or (n, 1)")
        rows, columns = (*shape, 1)[:2]
        if min(rows, columns) > 1 or rows * columns * dtype.itemsize != len(self.data):
            raise PickleError(f"an array of shape {shape} of {dtype} in {len(self.data):,} bytes")
        return np.frombuffer(self.data, dtype)


class _Machine:
    """The stack, the memo, and the place in the file."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.opcode_at = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.encoded = 0

    def take(self, count: int) -> bytes:
        start, end = self.at, self.at + count
        if count < 0 or end > len(self.data):
            raise PickleError("the file ends before a value does")
        self.at = end
        return self.data[start:end]

    def number(self, width: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(width), "little", signed=signed)

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise PickleError("the file ends before a line does")
        found = self.data[self.at : end]
        self.at = end + 1
        return found

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise PickleError("a value is missing")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise PickleError("a mark is missing")
        start = self.marks.pop()
        found = self.stack[start:]
        del self.stack[start:]
        return found

    def last(self, kind: type) -> Any:
        """The value on top, which stays there."""
        value = self.pop()
        if not isinstance(value, kind):
            raise PickleError(f"a {type(value).__name__} where there should be another value")
        self.stack.append(value)
        return value

    def run(self) -> Any:
        values, most = 0, _FREE_VALUES + len(self.data) // _BYTES_PER_VALUE
        while True:
            self.opcode_at = self.at
            code = self.number(1)
            if code == 0x2E:  # STOP
                return self.pop()
            if code in _CONSTANTS:
                self.stack.append(_CONSTANTS[code])
            elif code in _RECALL:
                self.stack.append(self._recalled(_RECALL[code](self)))
            else:
                if code not in _DO:
                    raise PickleError(f"opcode {bytes([code])!r}, which no set needs: refused")
                values += 1
                if values > most:
                    raise PickleError(f"more than {most:,} values, too many for the file's size")
                _DO[code](self)

    def _recalled(self, index: int) -> Any:
        if index not in self.memo:
            raise PickleError("a reference to a value that is not there")
        return self.memo[index]


def _text(value: Any) -> str:
    """A short text: what Python 2 wrote comes as bytes."""
    if isinstance(value, bytes):
        return value.decode("latin1")
    if not isinstance(value, str):
        raise PickleError(f"a {type(value).__name__} where there should be a text")
    return value


def _name(machine: _Machine, module: str, name: str) -> None:
    found = _NAMES.get((module, name))
    if found is None:
        raise PickleError(
            f"it names {f'{module}.{name}'[:_SHOWN]!r}, which no verification set needs: "
            "refused, and nothing of it was run"
        )
    machine.push(found)


def _reduce(machine: _Machine) -> None:
    arguments, name = machine.pop(), machine.pop()
    if not isinstance(name, _Name) or not isinstance(arguments, tuple):
        raise PickleError("a call of what is no function")
    match name, arguments:
        case _Name.ENCODE, (str() as text, how) if _text(how) in ("latin1", "latin-1"):
            # One short call can name a long text again and again; no real file does so.
            machine.encoded += len(text)
            if machine.encoded > len(machine.data):
                raise PickleError("it repeats a text more often than fits the file's size")
            machine.push(text.encode("latin1"))
        case _Name.DTYPE, (code, *_) if _DTYPE.fullmatch(_text(code)):
            machine.push(_Dtype(_text(code)))
        case _Name.RECONSTRUCT, (_Name.NDARRAY, *_):
            machine.push(Array())
        case _Name.FROMBUFFER, (data, dtype, shape, *_):
            machine.push(Array(data, dtype, shape))
        case _Name.SCALAR, (dtype, data):
            values = Array(data, dtype, (1,)).values()
            machine.push(values[0].item())
        case _:
            raise PickleError(f"a call of {name.name.lower()} that no verification set has")


def _build(machine: _Machine) -> None:
    state, value = machine.pop(), machine.last(object)
    match value, state:
        case Array(), (_, shape, dtype, _, data):
            value.data, value.dtype, value.shape = data, dtype, shape
        case _Dtype(), (_, order, *_) if _text(order) in ("|", "<", ">", "="):
            value.order = _text(order)
        case _:
            raise PickleError("a state that no array has")


def _sized(width: int, text: bool = False) -> Callable[[_Machine], None]:
    """A string behind its length."""

    def do(machine: _Machine) -> None:
        data = machine.take(machine.number(width))
        machine.push(data.decode("utf-8", "surrogatepass") if text else data)

    return do


def _tuple(count: int) -> Callable[[_Machine], None]:
    def do(machine: _Machine) -> None:
        machine.push(tuple(reversed([machine.pop() for _ in range(count)])))

    return do


def _quoted(machine: _Machine) -> None:
    line = machine.line().strip()
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1] != line[0]:
        raise PickleError("a string without its quotes")
    machine.push(codecs.escape_decode(line[1:-1])[0])


def _decimal(machine: _Machine) -> int:
    line = machine.line()
    if not re.fullmatch(rb"-?[0-9]{1,20}L?", line):
        raise PickleError("a number that is none")
    return int(line.rstrip(b"L"))


def _integer(machine: _Machine) -> None:
    truth = {b"00": False, b"01": True}.get(machine.data[machine.at : machine.at + 2])
    value = _decimal(machine)
    machine.push(value if truth is None else truth)


def _long(machine: _Machine) -> None:
    width = machine.number(1)
    machine.push(machine.number(width, signed=True))


def _global(machine: _Machine) -> None:
    module, name = machine.line(), machine.line()
    _name(machine, _text(module), _text(name))


def _stack_global(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    _name(machine, _text(module), _text(name))


def _append(machine: _Machine) -> None:
    value = machine.pop()
    machine.last(list).append(value)


def _appends(machine: _Machine) -> None:
    values = machine.pop_to_mark()
    machine.last(list).extend(values)


def _remember(index: Callable[[_Machine], int]) -> Callable[[_Machine], None]:
    def do(machine: _Machine) -> None:
        machine.memo[index(machine)] = machine.last(object)

    return do


_CONSTANTS = {0x4E: None, 0x88: True, 0x89: False, 0x29: ()}
_RECALL: dict[int, Callable[[_Machine], int]] = {
    0x68: lambda m: m.number(1),  # BINGET
    0x6A: lambda m: m.number(4),  # LONG_BINGET
    0x67: _decimal,  # GET
}
_DO: dict[int, Callable[[_Machine], Any]] = {
    0x80: lambda m: m.take(1),  # PROTO
    0x95: lambda m: m.take(8),  # FRAME
    0x28: lambda m: m.marks.append(len(m.stack)),  # MARK
    0x43: _sized(1),  # SHORT_BINBYTES
    0x42: _sized(4),  # BINBYTES
    0x8E: _sized(8),  # BINBYTES8
    0x96: _sized(8),  # BYTEARRAY8
    0x55: _sized(1),  # SHORT_BINSTRING
    0x54: _sized(4),  # BINSTRING
    0x53: _quoted,  # STRING
    0x8C: _sized(1, text=True),  # SHORT_BINUNICODE
    0x58: _sized(4, text=True),  # BINUNICODE
    0x8D: _sized(8, text=True),  # BINUNICODE8
    0x56: lambda m: m.push(m.line().decode("raw-unicode-escape")),  # UNICODE
    0x4B: lambda m: m.push(m.number(1)),  # BININT1
    0x4D: lambda m: m.push(m.number(2)),  # BININT2
    0x4A: lambda m: m.push(m.number(4, signed=True)),  # BININT
    0x49: _integer,  # INT
    0x4C: lambda m: m.push(_decimal(m)),  # LONG
    0x8A: _long,  # LONG1
    0x5D: lambda m: m.push([]),  # EMPTY_LIST
    0x6C: lambda m: m.push(m.pop_to_mark()),  # LIST
    0x61: _append,  # APPEND
    0x65: _appends,  # APPENDS
    0x85: _tuple(1),  # TUPLE1
    0x86: _tuple(2),  # TUPLE2
    0x87: _tuple(3),  # TUPLE3
    0x74: lambda m: m.push(tuple(m.pop_to_mark())),  # TUPLE
    0x94: _remember(lambda m: len(m.memo)),  # MEMOIZE
    0x71: _remember(lambda m: m.number(1)),  # BINPUT
    0x72: _remember(lambda m: m.number(4)),  # LONG_BINPUT
    0x70: _remember(_decimal),  # PUT
    0x63: _global,  # GLOBAL
    0x93: _stack_global,  # STACK_GLOBAL
    0x52: _reduce,  # REDUCE
    0x62: _build,  # BUILD
}


def loads(data: bytes, path: str) -> Any:
    """What a pickle of protocol 0 to 5 holds, Python 2's strings as bytes.

    Args:
        data: the whole file.
        path: what to call it in an error.

    Returns:
        None, bool, int, str, bytes, `Array`, and lists and tuples of them.

    Raises:
        UserError: where it is damaged, or holds or names anything else; with the byte.
    """
    machine = _Machine(data)
    try:
        return machine.run()
    except ValueError as error:
        raise UserError(f"{path}: byte {machine.opcode_at}: {error}") from None
