"""Git LFS uploads, basic and multipart, for clients that were told to use nothing else.

The links it hands out are signed, short-lived permissions of their own: a client sends no token to them. Parts wait
beside the store until the last has come; then they become one blob, or nothing.
"""

import hashlib
import secrets
import shutil
import tempfile
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import IO
from urllib.parse import urlencode

from flask import Blueprint, Response, jsonify, request
from itsdangerous import BadSignature, SignatureExpired, URLSafeTimedSerializer

from graft.hub.errors import ArtifactError, ConflictError, ForbiddenError, GraftError, TooLargeError, UnauthorizedError
from graft.hub.registry.access import keys, quotas, tokens, upload_claims
from graft.hub.registry.remote.extensions import LARGE_BY_LFS
from graft.hub.registry.storage.arrivals import CHUNK_BYTES
from graft.hub.web.huggingface.bodies import LfsBatch, LfsObject
from graft.hub.web.huggingface.read import writable_repo
from graft.hub.web.request import caller, endpoint, expect_files, hub, read_body, registry

blueprint = Blueprint("lfs", __name__)

PART_BYTES = 64 << 20  # files that are larger travel in parts, where the client knows how
LINK_LIFE_S = 3600
UPLOADING = ("upload", "part")  # what brings a body


@dataclass(frozen=True)
class Upload:
    """What a link permits: `who` may bring the bytes of this sha256 and size, or a `part` of them (from 1 on), for as long as the
    `token` stands that it was given for (tokens.require_standing)."""

    oid: str
    size: int
    who: str
    token: int | None
    part: int = 0


def uploaded(oid: str) -> bool:
    """Whether the caller may name these bytes. Those of others look absent: a hash is no proof of knowing them."""
    return registry().blobs.has(oid) and upload_claims.may_name(registry().db, caller(), oid)


def wanted(size: int) -> bool:
    """Whether a file of this size shall come this way, which takes no client's memory: only where a client has asked, since
    those with xet installed would go to a xet server that isn't there."""
    return size > PART_BYTES and all(request.headers.get(key) == value for key, value in LARGE_BY_LFS.items())


@blueprint.post("/<namespace>/<name>.git/info/lfs/objects/batch")
def batch(namespace: str, name: str) -> Response:
    writable_repo(namespace, name)
    asked = read_body(LfsBatch)
    if asked.operation != "upload":
        raise GraftError("Only LFS uploads are served here: downloads go through /resolve.")
    verify = f"{endpoint()}/{namespace}/{name}.git/info/lfs/verify"
    parts = "multipart" in asked.transfers
    objects = [_object(item, verify, parts) for item in asked.objects]
    return jsonify({"transfer": "multipart" if parts else "basic", "objects": objects})


def _object(item: LfsObject, verify: str, parts: bool) -> dict[str, object]:
    registry().blobs.path(item.oid)  # refuses what is no sha256
    answer: dict[str, object] = {"oid": item.oid, "size": item.size}
    if item.size > (most := registry().max_weights_bytes):
        return answer | {"error": {"code": 413, "message": f"At most {most:,} bytes a file."}}
    if uploaded(item.oid):
        return answer
    try:
        quotas.require_room(registry().db, caller().name, item.size)
    except TooLargeError as error:
        return answer | {"error": {"code": 413, "message": str(error)}}
    wanted = Upload(item.oid, item.size, caller().name, caller().token)
    upload = _upload_in_parts(wanted) if parts and item.size > PART_BYTES else _whole_upload(wanted)
    return answer | {"authenticated": True, "actions": {"upload": upload, "verify": {"href": verify}}}


def _whole_upload(wanted: Upload) -> dict[str, object]:
    return {"href": _link("upload", wanted), "header": {}}


def _upload_in_parts(wanted: Upload) -> dict[str, object]:
    """A link a part by its number, from 1 on, and one to say that all have come."""
    numbers = range(1, -(-wanted.size // PART_BYTES) + 1)
    links = {f"{number:05d}": _link("part", replace(wanted, part=number)) for number in numbers}
    return {"href": _link("complete", wanted), "header": {"chunk_size": str(PART_BYTES), **links}}


def permitted_upload(path: str) -> Upload | None:
    """What the present request's link permits; None where it is none of those with one. Raises ForbiddenError for a bad link."""
    action = path.rpartition("/lfs/")[2]
    return _check_link(action) if action in UPLOADING else None


@blueprint.put("/lfs/upload")
def upload() -> Response:
    given = _check_link("upload")
    expect_files()
    with hub().in_flight.room_for(registry().db, given.who, given.size):
        registry().blobs.put(request.stream, given.size, expected_sha256=given.oid)
        upload_claims.note_upload(registry().db, given.oid, given.size, given.who)
    return Response(status=200)


@blueprint.put("/lfs/part")
def part() -> Response:
    """One part, kept until all are there. Sent again, it takes the place of the first."""
    given = _check_link("part")
    expect_files()
    hub().in_flight.reserve(registry().db, given.who, given.size, _upload_key(given))
    folder = _parts_folder(given)
    folder.mkdir(exist_ok=True)
    due = min(PART_BYTES, given.size - (given.part - 1) * PART_BYTES)
    digest, received = hashlib.sha256(), 0
    with tempfile.NamedTemporaryFile(dir=registry().blobs.incoming, delete=False) as arriving:
        try:
            while received <= due and (chunk := request.stream.read(CHUNK_BYTES)):
                received += len(chunk)
                digest.update(chunk)
                arriving.write(chunk)
            if received != due:
                raise ConflictError(f"Part {given.part} has {due} bytes, not {received}: send it again.")
            arriving.flush()
            Path(arriving.name).replace(folder / f"{given.part:05d}")  # a retry may be doing the same
        finally:
            Path(arriving.name).unlink(missing_ok=True)
    return Response(status=200, headers={"ETag": f'"{digest.hexdigest()}"'})


@blueprint.post("/lfs/complete")
def complete() -> Response:
    """All parts have come: make them one blob. Its hash is checked, so the parts' own need not be."""
    given = _check_link("complete")
    folder = _parts_folder(given)
    mine = folder.with_name(f"{folder.name}-{secrets.token_hex(4)}")
    try:
        folder.rename(mine)  # whoever says so a second time finds nothing to do
    except FileNotFoundError:
        if upload_claims.has_brought(registry().db, given.oid, given.who):
            return jsonify({})
        raise ConflictError(
            f"{given.oid} has not arrived, or is being put together: ask again, or start anew."
        ) from None
    try:
        registry().blobs.put(Joined(sorted(mine.iterdir())), given.size, expected_sha256=given.oid)
        upload_claims.note_upload(registry().db, given.oid, given.size, given.who)
    except BaseException:
        with suppress(OSError):  # parts that came again meanwhile stay
            mine.rename(folder)
        raise
    shutil.rmtree(mine)
    quotas.release(registry().db, _upload_key(given))
    return jsonify({})


@blueprint.post("/<namespace>/<name>.git/info/lfs/verify")
def verify(namespace: str, name: str) -> Response:
    writable_repo(namespace, name)
    sent = read_body(LfsObject)
    if not uploaded(sent.oid) or registry().blobs.path(sent.oid).stat().st_size != sent.size:
        raise ArtifactError(f"{sent.oid} did not arrive whole: upload it again.")
    return jsonify({})


class Joined:
    """Files one after another, as one stream (store.Readable)."""

    def __init__(self, paths: list[Path]):
        self._paths = iter(paths)
        self._file: IO[bytes] | None = None

    def read(self, count: int) -> bytes:
        while True:
            if self._file is None:
                path = next(self._paths, None)
                if path is None:
                    return b""
                self._file = path.open("rb")
            if data := self._file.read(count):
                return data
            self._file.close()
            self._file = None


def _parts_folder(given: Upload) -> Path:
    """Where the parts of one upload wait. Those that are given up go with other interrupted uploads (gc)."""
    return registry().blobs.incoming / _upload_key(given)


def _upload_key(given: Upload) -> str:
    return hashlib.sha256(f"{given.oid} {given.who}".encode()).hexdigest()


def _link(action: str, wanted: Upload) -> str:
    return f"{endpoint()}/lfs/{action}?{urlencode({'permission': _signer(action).dumps(astuple(wanted))})}"


def _check_link(action: str) -> Upload:
    """What a link permits. Raises ForbiddenError where it isn't one of ours to `action`, or has expired."""
    try:
        given = Upload(*_signer(action).loads(request.args.get("permission", ""), max_age=LINK_LIFE_S))
    except SignatureExpired:
        raise ForbiddenError("This upload link has expired: start the upload again.") from None
    except BadSignature:
        raise ForbiddenError("This upload link is not one of ours: start the upload again.") from None
    try:
        tokens.require_standing(registry().db, given.token)
    except UnauthorizedError:
        raise ForbiddenError("The token that this upload began with was revoked, or has expired.") from None
    return given


def _signer(action: str) -> URLSafeTimedSerializer:
    key = keys.secret(registry().db, "lfs")
    return URLSafeTimedSerializer(key, salt=f"{action} by token", signer_kwargs={"digest_method": hashlib.sha256})
