"""The one door to the machine: only this folder imports ctypes, subprocess, fcntl or sqlite3.

Everyone else is handed a protocol (`Syscalls`, `ProcessRunner`, `Clock`) and plain values. What is
called here may block unless it is `async`; callers on the event loop use `asyncio.to_thread`.
"""
