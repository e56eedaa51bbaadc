"""The runtime of the page: two files of the npm package onnxruntime-web, of one version, checked by their hashes.

The files come from a path on this machine, and the page loads them from its own folder.
"""

import hashlib
import tarfile
from pathlib import Path

from ...utils.errors import UserError, first_line

VERSION = "1.30.0"
SCRIPT, BINARY = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
HASHES = {  # SHA-256
    SCRIPT: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    BINARY: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
ADVICE = f"get it with `npm pack onnxruntime-web@{VERSION}`, and pass the .tgz file"


def read_runtime(path: Path) -> dict[str, bytes]:
    """Read the files of the runtime.

    Args:
        path: Archive that `npm pack` writes, or a folder with the files, such as node_modules/onnxruntime-web.

    Returns:
        Content of each file of `HASHES` by its name.

    Raises:
        UserError: If the path or a file in it is missing or damaged, or a file is of another version.
    """
    try:
        files = _from_folder(path) if path.is_dir() else _from_archive(path)
    except (OSError, KeyError, tarfile.TarError, EOFError) as error:
        problem = f"--runtime: {path} is not onnxruntime-web: {first_line(error)}"
        raise UserError(f"{problem}; {ADVICE}") from error
    for name, content in files.items():
        found = hashlib.sha256(content).hexdigest()
        if found != HASHES[name]:
            expected = f"--runtime: expected {name} of onnxruntime-web {VERSION} (SHA-256 {HASHES[name][:12]}...)"
            raise UserError(f"{expected}, got another file ({found[:12]}...) in {path}; {ADVICE}")
    return files


def _from_folder(folder: Path) -> dict[str, bytes]:
    """Files of the runtime in a folder, or in its folder `dist`."""
    dist = folder / "dist" if (folder / "dist").is_dir() else folder
    return {name: (dist / name).read_bytes() for name in HASHES}


def _from_archive(path: Path) -> dict[str, bytes]:
    """Files of the runtime in an archive of npm; KeyError if one is missing."""
    files = {}
    with tarfile.open(path, "r:gz") as archive:
        for name in HASHES:
            file = archive.extractfile(f"package/dist/{name}")
            if file is None:
                raise KeyError(f"{name} is no regular file")
            files[name] = file.read()
    return files
