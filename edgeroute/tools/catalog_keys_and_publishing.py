"""Publisher of model catalogs: keys and their rotation, and a folder that any web server can serve, signed by TUF.

A version is copied into the folder with its card, certificate and canary inputs (tried on a device before it uses the model);
signing again keeps the list from expiring. Other files can be signed, too.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from edgeroute.catalog.catalog_client_and_updates import NAMED
from edgeroute.catalog.catalog_entry import FORMAT, Entry, entries, read_entry
from edgeroute.catalog.catalog_source_and_verification import INDEX, METADATA, TARGETS
from edgeroute.catalog.model_folder_and_downloads import FILES, replace_durably
from edgeroute.edge.edge_model_members_and_fingerprints import files as files_of_model
from edgeroute.edge.edge_model_members_and_fingerprints import model_text
from edgeroute.edge.model_card import card_path, sha256_of
from edgeroute.edge.runtimes_variants_ensemble import load, suffix_of, suffixes
from edgeroute.errors import BadInput, CatalogError, EdgerouteError, ModelMissing, PolicyError, StoreError
from edgeroute.stores.cache.input_keys_and_fingerprints import fingerprint
from edgeroute.stores.json_lines_and_process_locks import ProcessLock
from edgeroute.system.files_and_lock_waits import files_in
from edgeroute.system.late_imports_and_plugins import import_late, import_needed
from edgeroute.system.untrusted_files import MOST_TEXT, read_bytes
from edgeroute.types import EdgeModel

# Days that the list of keys, and that of models, are valid. An attacker can show a device an old list of models that long.
ROOT_DAYS, LISTS_DAYS = 3650, 30
ROOT_KEY, MODELS_KEY = "root.pem", "models.pem"
ONLINE = ("targets", "snapshot", "timestamp")


def keygen(folder: Path) -> tuple[Path, Path]:
    """Create the two private keys of a publisher: one for the list of keys, to store offline, and one for the list of models.

    An existing key is never replaced.

    Args:
        folder: folder for `root.pem` and `models.pem`, which only you may read; created if missing.

    Raises:
        StoreError: the folder cannot be written, or has keys already.
        RuntimeMissing: the library that creates keys is not installed.
    """
    signer = _signing().CryptoSigner
    paths = folder / ROOT_KEY, folder / MODELS_KEY
    made = list[Path]()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                made.append(path)
                file.write(signer.generate_ed25519().private_bytes)
    except OSError as e:
        for path in made:
            path.unlink()  # else the next run would take half of it for keys
        if isinstance(e, FileExistsError):
            raise StoreError(f"{e.filename} exists already: a new key would lock out the devices that trust it") from e
        raise StoreError(f"{folder}: the keys cannot be written: {e.strerror}") from e
    return paths


@contextmanager
def publishing(catalog: Path) -> Iterator[None]:
    """Hold the lock of a catalog's publishers within the block, waiting up to 10 s. Creates the catalog's folder.

    Without it, of two that sign at once one would be lost. Reads all lists before anything is written, which needs them all.

    Raises:
        CatalogError: a list is damaged.
        StoreError: another process has the lock, or the folder cannot be written.
    """
    lock = ProcessLock(catalog / "publish.lock")
    with _writing(catalog):
        catalog.mkdir(parents=True, exist_ok=True)
        if not lock.take(10.0):
            raise StoreError(f"{lock.path}: another process publishes: try again later")
    try:
        for role in ("root", *ONLINE):
            _newest(catalog / METADATA, role)
        _released(catalog / METADATA)
        yield
    finally:
        lock.leave()


@contextmanager
def _writing(catalog: Path) -> Iterator[None]:
    """Raise the system's errors in the `with` block as `StoreError`: the catalog cannot be written."""
    try:
        yield
    except OSError as e:
        if isinstance(e, EdgerouteError):
            raise
        raise StoreError(f"{catalog} cannot be written: {e.strerror or e}") from e


def publish(
    catalog: Path,
    name: str,
    version: str,
    files: Sequence[Path],
    *,
    keys: Path,
    certificate: Path | None = None,
    canaries: Path | None = None,
    requires: str = "",
    notes: str = "",
    days: float = LISTS_DAYS,
) -> Entry:
    """Copy a new version of a model into a catalog, created if missing, and sign the catalog.

    Files of the version that no list has, of an interrupted run, are replaced.

    Args:
        catalog: folder of the catalog.
        name: name of the model.
        version: a new version: a published one never changes.
        files: the model's file or folder first; then files that belong to it, such as external data. The card beside it is added.
        keys: folder of the keys that `keygen` created.
        certificate: file of the threshold's certificate, from `edgeroute calibrate`.
        canaries: an .npz file of `inputs` and their right `answers`, tried on each device before it is activated.
        requires: lowest version of edgeroute that can run it.
        notes: text for people.
        days: days that the list is valid; sign it again before they end.

    Raises:
        BadInput: the catalog has the version already, or the model's file has no runtime.
        CatalogError: a name cannot be used on every system, or the catalog's list is damaged.
        PolicyError: a key is missing, or is another catalog's.
        StoreError: the catalog cannot be written.
        ModelMissing: a file of the version does not exist.
        RuntimeMissing: the libraries that sign are not installed.
    """
    if not files or any(not path.exists() for path in files):
        raise ModelMissing(f"there is no model at {next((path for path in files if not path.exists()), 'none')}")
    if suffix_of(files[0]) is None:
        raise BadInput(f"{files[0]} has no runtime: a model's file ends in {', '.join(suffixes())}")
    card = card_path(files[0])
    given = [*files, *([card] if card.is_file() and card not in files else [])]
    sources = {path: source for item in given for path, source in _paths_in_version(item)}
    more: dict[str, str] = {}
    for key, file in (("certificate", certificate), ("canaries", canaries)):
        if file is not None:
            more[key] = file.name if file.name not in sources else f"{key}{file.suffix}"
            sources[more[key]] = file
    listed = [{"path": path, "size": source.stat().st_size, "sha256": sha256_of(source)} for path, source in sources.items()]
    entry = read_entry({
        "name": name, "version": version, "model": files[0].name, "files": listed, "requires": requires, "notes": notes, **more,
    })  # fmt: skip
    signers = _signers(keys)
    with publishing(catalog), _writing(catalog):
        known = _listed(catalog)
        if any((other.name, other.version.casefold()) == (name, version.casefold()) for other in known):
            raise BadInput(f"{catalog} has {name} {version} already, and devices may have it: give it another version")
        to = catalog / FILES / name / version
        if to.exists():  # a run that was interrupted: nothing lists it
            shutil.rmtree(to)
        for path, source in sources.items():
            (to / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, to / path)
        _sign(catalog, {INDEX: catalog_json((*known, entry))}, signers, days)
    return entry


def version_with(catalog: Path, name: str, model: EdgeModel) -> tuple[Entry, Entry]:
    """Return the newest version in a catalog that has the contents of a model's files and card, and the newest of all.

    Only for these contents a certificate of the model holds. Reads the files of both; a version that cannot be read has others.

    Args:
        catalog: folder of the catalog.
        name: name of the model in the catalog.
        model: the model, as a policy names it.

    Raises:
        BadInput: the catalog has no such model, or no version of it with these contents.
        CatalogError: the catalog cannot be read.
        OSError: a file of the model cannot be read.
    """
    listed = [entry for entry in reversed(_listed(catalog)) if entry.name == name]
    if not listed:
        raise BadInput(f"{catalog} has no model {name}: edgeroute models publish adds one")
    contents = [fingerprint(path) for path in files_of_model(model)]
    for entry in listed:
        with suppress(EdgerouteError, OSError):
            of_entry = files_of_model(load(catalog / FILES / name / entry.version / entry.model))
            if contents and contents == [fingerprint(path) for path in of_entry]:
                return entry, listed[0]
    raise BadInput(
        f"no version of {name} in {catalog} has the files and card of {model_text(model)}, for which alone a certificate holds: "
        f"make it without --catalog, and then edgeroute models publish {name} FILE --version VERSION --certificate CERTIFICATE"
    )


def publish_certificate(catalog: Path, entry: Entry, version: str, certificate: Path, *, keys: Path) -> Entry:
    """Copy a version of a model into a new one that has another certificate, and sign the catalog.

    Its canary inputs, notes and requirement stay; the list is valid for 30 days.

    Args:
        catalog: folder of the catalog.
        entry: the version to copy, for whose model the certificate holds, as of `version_with`.
        version: the new version.
        certificate: file of the certificate.
        keys: folder of the keys that `keygen` created.

    Raises:
        BadInput: the catalog has the version already.
        CatalogError: a name cannot be used on every system, or the catalog cannot be read.
        PolicyError: a key is missing.
        StoreError: the catalog cannot be written.
    """
    folder = catalog / FILES / entry.name / entry.version
    more = {entry.certificate, entry.canaries}
    tops = dict.fromkeys([entry.model, *(file.path.partition("/")[0] for file in entry.files if file.path not in more)])
    canaries = folder / entry.canaries if entry.canaries else None
    return publish(
        catalog, entry.name, version, [folder / top for top in tops], keys=keys, certificate=certificate, canaries=canaries,
        requires=entry.requires, notes=entry.notes,
    )  # fmt: skip


def sign(catalog: Path, *, keys: Path, days: float = LISTS_DAYS, withdraw: Sequence[tuple[str, str]] = ()) -> tuple[Entry, ...]:
    """Sign a catalog again, so that its list of models does not expire, and return its remaining entries.

    The list of models is written anew, and so are the other lists, with the next version number.

    Args:
        catalog: folder of the catalog.
        keys: folder of the keys. Without `root.pem`, which may be offline, the list of keys does not change.
        days: days that the list is valid from now on.
        withdraw: (name, version) pairs to remove from the list; their files stay.

    Raises:
        BadInput: there is no such version.
        CatalogError: there is no catalog, or it cannot be read.
        PolicyError: a key is missing, or is another catalog's.
        StoreError: the catalog cannot be written.
        RuntimeMissing: the libraries that sign are not installed.
    """
    if not (catalog / METADATA / "timestamp.json").exists():
        raise CatalogError(f"{catalog} is no catalog: edgeroute models publish makes one")
    with publishing(catalog), _writing(catalog):
        known = _listed(catalog)
        unknown = {*withdraw} - {(entry.name, entry.version) for entry in known}
        if unknown:
            raise BadInput(f"{catalog} has no {' '.join(min(unknown))}")
        remaining = tuple(entry for entry in known if (entry.name, entry.version) not in withdraw)
        _sign(catalog, {INDEX: catalog_json(remaining)}, _signers(keys), days)
    return remaining


def _paths_in_version(path: Path) -> list[tuple[str, Path]]:
    """Return pairs (path inside the version's folder, source file) for a file, or for each file of a folder, recursively."""
    if path.is_dir():
        return [((Path(path.name) / file.relative_to(path)).as_posix(), file) for file in files_in(path)]
    return [(path.name, path)]


def _listed(catalog: Path) -> tuple[Entry, ...]:
    """Return the entries that the catalog lists now; () if there is no catalog; raise CatalogError if it cannot be read."""
    listed = signed_file(catalog, INDEX)
    return () if listed is None else entries(listed)


def sign_files(catalog: Path, files: Mapping[str, bytes], *, keys: Path, days: float = LISTS_DAYS) -> None:
    """Add signed files to a catalog, created if missing with an empty list of models, or replace those of the same names.

    Sign it.

    Args:
        catalog: folder of the catalog.
        files: path among the catalog's signed files -> content.
        keys: folder of the keys that `keygen` created.
        days: days that all lists are valid.

    Raises:
        PolicyError: a key is missing.
        StoreError: the catalog cannot be written.
    """
    new = {} if _released(catalog / METADATA) else {INDEX: catalog_json(())}
    with _writing(catalog):
        _sign(catalog, {**new, **files}, _signers(keys), days)


def signed_file(catalog: Path, name: str) -> bytes | None:
    """Return the content of a signed file of a catalog, as devices see it; None: it has none of this name.

    Raises CatalogError if it cannot be read.
    """
    targets = _released(catalog / METADATA)
    if targets is None or name not in targets.signed.targets:
        return None
    try:
        return read_bytes(_signed_path(catalog, name, targets.signed.targets[name]))
    except OSError as e:
        raise CatalogError(f"{catalog}: {name} cannot be read: {e.strerror}") from e


def _signed_path(catalog: Path, name: str, target: Any) -> Path:
    """Return the path of a signed file, whose name begins with its hash."""
    path = catalog / TARGETS / name
    return path.with_name(f"{target.hashes['sha256']}.{path.name}")


def _sign(catalog: Path, files: Mapping[str, bytes], signers: dict[str, Any], days: float, also: Mapping[str, Any] = {}) -> None:
    """Write signed files and their metadata, the timestamp last: until then devices, and publishers, see the former catalog.

    The other files that it names stay. A new catalog also gets its list of keys. For an existing one `signers` must hold its key,
    else `PolicyError` is raised. `also`: signers of the next list of keys.
    """
    api = _tuf()
    folder = catalog / METADATA
    folder.mkdir(parents=True, exist_ok=True)
    last = _released(folder)
    listed = {} if last is None else dict(last.signed.targets)
    for name, text in files.items():
        listed[name] = target = api.TargetFile.from_data(name, text)
        path = _signed_path(catalog, name, target)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_durably(path, text)
    root = _newest(folder, "root")
    if root is None:
        _write_root(folder, signers)
    elif signers["targets"].public_key.keyid not in root.signed.roles["targets"].keyids:
        raise PolicyError(f"{MODELS_KEY} is not the key of this catalog: take the right one, or edgeroute models keygen --rotate")
    until = _expiry(days)
    # of a first run that was killed no device has seen a file
    version = {role: 1 if last is None else _newest(folder, role).signed.version + 1 for role in ONLINE}
    targets = api.Targets(version=version["targets"], expires=until, targets=listed)
    snapshot = api.Snapshot(version=version["snapshot"], expires=until, meta={"targets.json": api.MetaFile(version["targets"])})
    timestamp = api.Timestamp(version=version["timestamp"], expires=until, snapshot_meta=api.MetaFile(version["snapshot"]))
    for signed in (targets, snapshot, timestamp):
        data = _signed_bytes(api.Metadata(signed), [of[signed.type] for of in (signers, also) if of])
        prefix = "" if signed.type == "timestamp" else f"{signed.version}."
        replace_durably(folder / f"{prefix}{signed.type}.json", data)


def _write_root(folder: Path, signers: dict[str, Any], version: int = 1, also: Sequence[Any] = ()) -> None:
    """Write a signed list of keys, also as the catalog's `root.json`; raise PolicyError without the root key.

    `also`: signers of the version before, if there is one, whose signatures let devices follow.
    """
    if "root" not in signers:
        raise PolicyError(f"a new catalog needs {ROOT_KEY} beside {MODELS_KEY}: edgeroute models keygen makes both")
    api = _tuf()
    root = api.Root(version=version, expires=_expiry(ROOT_DAYS), consistent_snapshot=True)
    for role in ("root", *ONLINE):
        root.add_key(signers[role].public_key, role)
    data = _signed_bytes(api.Metadata(root), [signers["root"], *also])
    paths = [folder.parent / "root.json", folder / f"{version}.root.json"]  # the first is the copy that devices are set up with
    for path in paths if version == 1 else reversed(paths):  # if this is killed between them, the next run writes both
        replace_durably(path, data)


def rotate(catalog: Path, *, keys: Path, new: Path) -> None:
    """Sign a catalog with the existing keys in `new` from now on; creates none. Devices that trust the old keys follow.

    Signs all lists again for 30 days by the old keys and the new ones, so that they are valid with either list of keys, then
    writes a new list of keys, signed by both root keys.

    Args:
        catalog: folder of the catalog.
        keys: folder of the keys in use, with `root.pem`.
        new: folder of the new keys, with `root.pem`: the same folder, or another one.

    Raises:
        CatalogError: there is no catalog.
        PolicyError: a key is missing, or is another catalog's.
        StoreError: the catalog cannot be written.
    """
    if _released(catalog / METADATA) is None:
        raise CatalogError(f"{catalog} is no catalog: edgeroute models publish makes one")
    old, signers = _signers(keys), _signers(new)
    for folder, its in ((keys, old), (new, signers)):
        if "root" not in its:
            raise PolicyError(f"{folder / ROOT_KEY} is missing: it signs the new keys")
    with publishing(catalog), _writing(catalog):
        root = _newest(catalog / METADATA, "root").signed
        if not {old["root"].public_key.keyid, signers["root"].public_key.keyid} & {*root.roles["root"].keyids}:
            raise PolicyError(f"{keys / ROOT_KEY} is not the key of this catalog: no device would follow")
        is_new = signers["targets"].public_key.keyid in root.roles["targets"].keyids  # a run before was killed at its end
        _sign(catalog, {}, signers if is_new else old, LISTS_DAYS, signers)
        _write_root(catalog / METADATA, signers, root.version + 1, [old["root"]])


def _signed_bytes(metadata: Any, signers: Sequence[Any]) -> bytes:
    """Sign metadata with each signer, in place, and return its bytes."""
    for i, signer in enumerate(signers):
        metadata.sign(signer, append=bool(i))
    data: bytes = metadata.to_bytes()
    return data


def _newest(folder: Path, role: str) -> Any:
    """Read a role's newest metadata, by the version in the file's name; None if there is none.

    It may be of a run that was killed, which nothing refers to. Raise CatalogError if it is damaged.
    """
    paths = [folder / "timestamp.json"] if role == "timestamp" else folder.glob(f"*.{role}.json")
    numbered = [(path.name.partition(".")[0], path) for path in paths if path.exists()]
    versions = [(int(number) if number.isdecimal() else 0, path) for number, path in numbered]
    return _metadata(max(versions)[1], role) if versions else None


def _released(folder: Path) -> Any:
    """Read the list of signed files that devices see, to which the timestamp leads; None if there is none.

    Raise CatalogError if it, or what leads to it, is damaged. Without a timestamp, a catalog that was signed once counts as one
    whose first run was killed.
    """
    timestamp = _newest(folder, "timestamp")
    if timestamp is None:
        last = _newest(folder, "snapshot")
        if last is None or last.signed.version == 1:  # the first run was killed
            return None
        raise CatalogError(f"{folder / 'timestamp.json'} is missing, so restore the folder from a copy")
    snapshot = _metadata(folder / f"{timestamp.signed.snapshot_meta.version}.snapshot.json", "snapshot")
    return _metadata(folder / f"{snapshot.signed.meta['targets.json'].version}.targets.json", "targets")


def _metadata(path: Path, role: str) -> Any:
    """Read a role's file of metadata; raise CatalogError if it is damaged, another role's, or missing."""
    try:
        data = _tuf().Metadata.from_file(str(path))
    except Exception as e:  # python-tuf's errors derive from Exception alone
        raise CatalogError(f"{path} is no metadata of a catalog, so restore the folder from a copy: {e}") from e
    if data.signed.type != role:
        raise CatalogError(f"{path} has another role's metadata, {data.signed.type}, so restore the folder from a copy")
    return data


def _signers(keys: Path) -> dict[str, Any]:
    """Read the private keys in a folder and return role -> signer; without `root.pem`, which may be offline, there is no "root".

    Raises:
        PolicyError: the key of the models is missing, or a key file is invalid.
    """
    signing, signers = _signing(), dict[str, Any]()
    serialization = import_late("cryptography.hazmat.primitives.serialization")
    for file, roles in ((ROOT_KEY, ("root",)), (MODELS_KEY, ONLINE)):
        path = keys / file
        try:
            key = serialization.load_pem_private_key(read_bytes(path, MOST_TEXT), None)
        except FileNotFoundError:  # as root.pem usually is, which is offline
            continue
        except (ValueError, TypeError) as e:
            raise PolicyError(f"{path} is no private key without a password in PEM") from e
        except OSError as e:
            raise PolicyError(f"{path} cannot be read: {e.strerror}") from e
        signers |= dict.fromkeys(roles, signing.CryptoSigner(key))
    if "targets" not in signers:
        raise PolicyError(f"{keys / MODELS_KEY} is missing: edgeroute models keygen makes the keys")
    return signers


def _expiry(days: float) -> datetime:
    """Return the time so many days from now, UTC, in whole seconds."""
    return datetime.now(timezone.utc).replace(microsecond=0) + timedelta(days=days)


def _tuf() -> Any:
    """Import python-tuf; raise `RuntimeMissing` without it."""
    return import_needed("tuf.api.metadata", "publishing needs python-tuf: pip install 'edgeroute[publish]'")


def _signing() -> Any:
    """Import the library of signers; raise `RuntimeMissing` without it."""
    need = "keys and signatures need more: pip install 'edgeroute[publish]'"
    import_needed("cryptography", need)
    return import_needed("securesystemslib.signer", need)


def catalog_json(listed: tuple[Entry, ...]) -> bytes:
    """Return a catalog with these entries as JSON, encoded."""
    return json.dumps({"format": FORMAT, "models": [entry.json() for entry in listed]}, indent=1).encode()


def write_canaries(path: Path, inputs: Sequence[Any], answer: Callable[[Any], Any]) -> None:
    """Write inputs, with the answers that a function gives, to an .npz file: for a publisher, who has checked the answers.

    The function is called here, for one input at a time. An existing file is replaced.

    Raises:
        CatalogError: the answers are neither labels nor numbers.
        OSError: the file cannot be written.
    """
    import numpy as np

    answers = np.array([answer(x) for x in inputs])
    if answers.dtype.hasobject:
        raise CatalogError("the model's answers are no labels or numbers: write the canary file yourself")
    if isinstance(inputs[0], dict):
        columns: dict[str, Any] = {f"{NAMED}{name}": np.stack([x[name] for x in inputs]) for name in inputs[0]}
    else:
        columns = {"inputs": np.stack([np.asarray(x) for x in inputs])}
    np.savez_compressed(path, answers=answers, **columns)
