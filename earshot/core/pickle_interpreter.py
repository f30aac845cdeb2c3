"""Pickles interpreted as plain data: no class is looked up, nothing is called; readers say which few names
mean what."""

from __future__ import annotations

import pickle  # for the names of its opcodes only
import struct
from typing import Any, BinaryIO, NamedTuple

MAX_STEPS = 2**20  # opcodes, and nodes of the value: a byte of a pickle can make an object of a hundred
MAX_TEXT = 2**26  # characters in all
MAX_DEPTH = 32

CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False}
NUMBERS = {pickle.BININT: "<i", pickle.BININT1: "<B", pickle.BININT2: "<H", pickle.BINFLOAT: ">d"}
LENGTHS = {pickle.SHORT_BINUNICODE: "<B", pickle.BINUNICODE: "<I"}
INDICES = {pickle.BINGET: "<B", pickle.LONG_BINGET: "<I", pickle.BINPUT: "<B", pickle.LONG_BINPUT: "<I"}
TUPLES = {pickle.EMPTY_TUPLE: 0, pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}


class Refused(Exception):
    """Why a pickle is not read."""


class Global(NamedTuple):
    """A name that a pickle asks for; never imported."""

    module: str
    name: str


class Interpreter:
    """Reads one pickle from a file of `size` bytes; readers override `call`, `make`, `build` and `stored`.

    Opcodes outside the few that plain data needs are refused, as are keys that are no text, more than
    MAX_STEPS opcodes, lengths beyond the file's end, and, in the finished value, anything but text, numbers,
    lists, tuples, dicts and `leaves`.
    """

    leaves: tuple[type, ...] = ()

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size = file, size
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def call(self, function: Global, arguments: tuple) -> Any:
        """What REDUCE gives."""
        raise Refused(f"it calls {'.'.join(function)!r}"[:100])

    def make(self, kind: Global, arguments: tuple) -> Any:
        """What NEWOBJ gives."""
        raise Refused(f"it makes an object of {'.'.join(kind)!r}"[:100])

    def build(self, target: Any, state: Any) -> Any:
        """What BUILD leaves on the stack."""
        raise Refused("it changes an object")

    def stored(self, name: Any) -> Any:
        """What BINPERSID gives."""
        raise Refused("it refers to something outside")

    def load(self) -> Any:
        """The value; Refused, or IndexError, KeyError, ValueError for a damaged pickle."""
        for _ in range(MAX_STEPS):
            code = self._read(1)
            if code == pickle.STOP:
                (value,) = self.stack
                if self.marks:
                    raise Refused("it is damaged")
                self._nodes = self._text = 0
                self._settle(value, 0)
                return value
            self._step(code)
        raise Refused(f"it has more than {MAX_STEPS} parts")

    def _read(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise Refused("it ends too early: cut off?")
        return self.file.read(count)

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._read(struct.calcsize(layout)))[0]

    def _step(self, code: bytes) -> None:
        stack = self.stack
        if code in CONSTANTS:
            stack.append(CONSTANTS[code])
        elif code in NUMBERS:
            stack.append(self._number(NUMBERS[code]))
        elif code in LENGTHS:
            stack.append(self._read(self._number(LENGTHS[code])).decode("utf-8", "surrogatepass"))
        elif code == pickle.LONG1:
            stack.append(int.from_bytes(self._read(self._number("<B")), "little", signed=True))
        elif code in INDICES:
            index = self._number(INDICES[code])
            if code in (pickle.BINGET, pickle.LONG_BINGET):
                stack.append(self.memo[index])
            else:
                self.memo[index] = stack[-1]
        elif code == pickle.MEMOIZE:
            self.memo[len(self.memo)] = stack[-1]
        elif code in TUPLES:
            count = TUPLES[code]
            if count > len(stack):
                raise Refused("it is damaged")
            items = tuple(stack[len(stack) - count :])
            del stack[len(stack) - count :]
            stack.append(items)
        elif code == pickle.EMPTY_LIST:
            stack.append([])
        elif code == pickle.EMPTY_DICT:
            stack.append({})
        elif code == pickle.MARK:
            self.marks.append(stack)
            self.stack = []
        elif code == pickle.TUPLE:
            items = self._marked()
            self.stack.append(tuple(items))
        elif code in (pickle.APPEND, pickle.APPENDS):
            items = [stack.pop()] if code == pickle.APPEND else self._marked()
            self._top(list).extend(items)
        elif code in (pickle.SETITEM, pickle.SETITEMS):
            items = [stack.pop(-2), stack.pop()] if code == pickle.SETITEM else self._marked()
            self._set(self._top(dict), items)
        elif code == pickle.PROTO:
            if self._number("<B") > 5:
                raise Refused("it is of a newer pickle protocol")
        elif code == pickle.FRAME:
            if self._number("<Q") > self.size - self.file.tell():
                raise Refused("it ends too early: cut off?")
        elif code in (pickle.GLOBAL, pickle.STACK_GLOBAL):
            self._global(code)
        elif code in (pickle.REDUCE, pickle.NEWOBJ):
            arguments, function = stack.pop(), stack.pop()
            if type(function) is not Global or type(arguments) is not tuple:
                raise Refused("it calls what is no name")
            stack.append((self.call if code == pickle.REDUCE else self.make)(function, arguments))
        elif code == pickle.BUILD:
            state = stack.pop()
            stack[-1] = self.build(stack[-1], state)
        elif code == pickle.BINPERSID:
            stack.append(self.stored(stack.pop()))
        else:
            raise Refused(f"it holds more than arrays, text and numbers (opcode {code!r})")

    def _global(self, code: bytes) -> None:
        if code == pickle.GLOBAL:
            module, name = (self.file.readline(200).decode("utf-8").removesuffix("\n") for _ in range(2))
        else:
            name, module = self.stack.pop(), self.stack.pop()
        if type(module) is not str or type(name) is not str:
            raise Refused("it asks for what is no name")
        self.stack.append(Global(module, name))

    def _marked(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise Refused("it changes an object")
        return self.stack[-1]

    @staticmethod
    def _set(target: dict, items: list[Any]) -> None:
        if len(items) % 2:
            raise Refused("it is damaged")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:
                raise Refused("it has a key that is no text")
            if key in target:
                raise Refused(f"it has the key {key[:40]!r} twice")
            target[key] = value

    def _settle(self, value: Any, depth: int) -> None:
        """Refuse what is no plain data, or unfolds (a list that is referred to again and again) into more
        than the limits."""
        self._nodes += 1
        self._text += len(value) if type(value) is str else 0
        if depth > MAX_DEPTH or self._nodes > MAX_STEPS or self._text > MAX_TEXT:
            raise Refused("it is nested too deeply, or unfolds into too much")
        if type(value) in (list, tuple):
            for item in value:
                self._settle(item, depth + 1)
        elif type(value) is dict:
            for key, item in value.items():
                self._settle(key, depth + 1)
                self._settle(item, depth + 1)
        elif value is not None and type(value) not in (str, int, float, bool, *self.leaves):
            raise Refused("it holds more than arrays, text and numbers")
