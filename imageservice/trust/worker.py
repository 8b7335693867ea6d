"""The process that judges: `python -m imageservice.trust.worker`, a Question in, an Answer out.

It lives for one question (0.15 s, most of it loading the library): verdicts are kept, so a node
asks a few times for each image and policy. Nothing here opens a file or a socket. Limits: no core
dumps, `MEMORY_BYTES` of address space, `CPU_S` of computing; whoever exceeds them has no verdict,
which is a refusal.
"""

from __future__ import annotations

import os
import resource
import sys
from typing import Final

from sandbox.host import oom

MEMORY_BYTES: Final = 1 << 30
#: A hundred signatures with certificates, each against ten keys, take a second.
CPU_S: Final = 20


def main() -> int:
    """Answer the question on standard input; an exit status."""
    oom.expose_self()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    # Late, so that the limits hold for them as well.
    from imageservice.trust.judge import judge
    from imageservice.trust.model import encode, question_decoder

    answer = judge(question_decoder.decode(sys.stdin.buffer.read()))
    os.write(1, encode(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
