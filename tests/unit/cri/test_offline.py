"""Loading into a store that no daemon serves."""

import io
import tarfile

from cri.cli_images import _packed
from cri.offline import _async


async def test_a_directory_is_packed_to_its_end(tmp_path):
    """Files that fill their blocks need no padding, and an empty piece is no end."""
    for name, size in (("a", 512), ("b", 100), ("c", 0), ("d/e", 4096), ("f", 1)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * size)
    data = b"".join([chunk async for chunk in _async(_packed(tmp_path))])
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        sizes = {member.name: member.size for member in archive}
    assert sizes == {"a": 512, "b": 100, "c": 0, "d/e": 4096, "f": 1}
