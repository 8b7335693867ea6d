"""Makes tiny x86-64 programs that do one system call and exit with its errno, 0 for success.

Tests of system call filters need calls that no shell makes (clone3, socket(AF_ALG), the 32-bit
entry by `int 0x80`). Written as machine code, so that no compiler is needed where they run.
"""

from __future__ import annotations

import struct

_BASE = 0x400000
_HEADERS_BYTES = 64 + 56


def probe(number: int, *arguments: int) -> bytes:
    """A program that does the 64-bit system call `number`."""
    registers = (b"\x48\xbf", b"\x48\xbe", b"\x48\xba", b"\x49\xba")  # rdi rsi rdx r10
    code = b"\x48\xb8" + struct.pack("<Q", number)  # mov rax, number
    for opcode, value in zip(registers, arguments, strict=False):
        code += opcode + struct.pack("<Q", value)
    return _elf(code + b"\x0f\x05" + _EXIT)  # syscall


def probe_32(number: int, first: int, memory: tuple[int, ...]) -> bytes:
    """A program that enters the 32-bit table with `first` and a pointer to words of memory."""
    length = 5 * 3 + 2 + 3 + len(_EXIT)
    code = b"\xb8" + struct.pack("<I", number)  # mov eax, number
    code += b"\xbb" + struct.pack("<I", first)  # mov ebx, first
    code += b"\xb9" + struct.pack("<I", _BASE + _HEADERS_BYTES + length)  # mov ecx, memory
    code += b"\xcd\x80" + b"\x48\x63\xc0" + _EXIT  # int 0x80; movsxd rax, eax
    return _elf(code + struct.pack(f"<{len(memory)}I", *memory))


# xor edi, edi; test rax, rax; jns over; mov rdi, rax; neg rdi; over: mov eax, SYS_exit; syscall
_EXIT = b"\x31\xff\x48\x85\xc0\x79\x06\x48\x89\xc7\x48\xf7\xdf\xb8\x3c\x00\x00\x00\x0f\x05"


def _elf(code: bytes) -> bytes:
    """ELF header and one program header (elf(5)), all in one readable, executable segment."""
    size = _HEADERS_BYTES + len(code)
    identity = b"\x7fELF\x02\x01\x01" + bytes(9)
    entry = _BASE + _HEADERS_BYTES
    header = identity + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + code
