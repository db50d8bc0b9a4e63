"""Git LFS uploads, basic and multipart, for clients that were told to use nothing else.

The links it hands out are signed, short-lived permissions of their own: a client sends no token to them. Parts wait
beside the store until the last has come; then they become one blob, or nothing.
"""

import hashlib
import hmac
import shutil
import tempfile
import time
from pathlib import Path
from typing import IO
from urllib.parse import urlencode

from flask import Blueprint, Response, jsonify, request

from graft.hub.errors import ArtifactError, ConflictError, ForbiddenError, GraftError, TooLargeError
from graft.hub.registry import upload_claims
from graft.hub.registry.access import keys, quotas
from graft.hub.registry.storage.blob_store import CHUNK_BYTES
from graft.hub.web.huggingface.read import body, count_field, text_field, writable_repo
from graft.hub.web.request import caller, endpoint, expect_files, hub, registry

blueprint = Blueprint("lfs", __name__)

PART_BYTES = 64 << 20  # files that are larger travel in parts, where the client knows how
ASKED = {"X-Graft-Uploads": "lfs"}  # the header of a client that sends large files this way if the hub wants it
SIGNATURE_LIFE_S = 3600


def uploaded(oid: str) -> bool:
    """Whether the caller may name these bytes. Those of others look absent: a hash is no proof of knowing them."""
    return registry().blobs.has(oid) and upload_claims.may_name(registry().db, caller(), oid)


def wanted(size: int) -> bool:
    """Whether a file of this size shall come this way, which takes no client's memory: only where a client has asked, since
    those with xet installed would go to a xet server that isn't there."""
    return size > PART_BYTES and all(request.headers.get(key) == value for key, value in ASKED.items())


@blueprint.post("/<namespace>/<name>.git/info/lfs/objects/batch")
def batch(namespace: str, name: str) -> Response:
    writable_repo(namespace, name)
    fields = body()
    listed = fields.get("objects")
    if fields.get("operation") != "upload" or not isinstance(listed, list):
        raise GraftError("Only LFS uploads are served here: downloads go through /resolve.")
    offered = fields.get("transfers")
    parts = isinstance(offered, list) and "multipart" in offered
    objects = [_object(item, f"{endpoint()}/{namespace}/{name}.git/info/lfs/verify", parts) for item in listed]
    return jsonify({"transfer": "multipart" if parts else "basic", "objects": objects})


def _object(item: object, verify: str, parts: bool) -> dict[str, object]:
    if not isinstance(item, dict):
        raise GraftError("Each of 'objects' must be an object with oid and size.")
    oid, size = text_field(item, "oid"), count_field(item, "size")
    registry().blobs.path(oid)  # refuses what is no sha256
    answer: dict[str, object] = {"oid": oid, "size": size}
    if size > (most := registry().max_weights_bytes):
        return answer | {"error": {"code": 413, "message": f"At most {most:,} bytes a file."}}
    if uploaded(oid):
        return answer
    try:
        quotas.require_room(registry().db, caller().name, size)
    except TooLargeError as error:
        return answer | {"error": {"code": 413, "message": str(error)}}
    permission = {
        "oid": oid,
        "size": str(size),
        "until": str(int(time.time()) + SIGNATURE_LIFE_S),
        "who": caller().name,
    }
    upload = _upload_in_parts(permission, size) if parts and size > PART_BYTES else _whole_upload(permission)
    return answer | {"authenticated": True, "actions": {"upload": upload, "verify": {"href": verify}}}


def _whole_upload(permission: dict[str, str]) -> dict[str, object]:
    return {"href": _link("upload", permission), "header": {}}


def _upload_in_parts(permission: dict[str, str], size: int) -> dict[str, object]:
    """A link a part by its number, from 1 on, and one to say that all have come."""
    count = -(-size // PART_BYTES)
    numbers = [f"{number:05d}" for number in range(1, count + 1)]
    links = {number: _link("part", permission | {"part": number}) for number in numbers}
    return {"href": _link("complete", permission), "header": {"chunk_size": str(PART_BYTES), **links}}


@blueprint.put("/lfs/upload")
def upload() -> Response:
    given = _check_link("upload")
    expect_files()
    size = int(given["size"])
    with hub().in_flight.room_for(registry().db, given["who"], size):
        registry().blobs.put(request.stream, size, expected_sha256=given["oid"])
        upload_claims.note_upload(registry().db, given["oid"], size, given["who"])
    return Response(status=200)


@blueprint.put("/lfs/part")
def part() -> Response:
    """One part, kept until all are there. Sent again, it takes the place of the first."""
    given = _check_link("part", "part")
    expect_files()
    quotas.reserve(registry().db, given["who"], int(given["size"]), _upload_key(given))
    folder = _parts_folder(given)
    folder.mkdir(exist_ok=True)
    due = min(PART_BYTES, int(given["size"]) - (int(given["part"]) - 1) * PART_BYTES)
    digest, received = hashlib.sha256(), 0
    with tempfile.NamedTemporaryFile(dir=registry().blobs.incoming) as arriving:
        while received <= due and (chunk := request.stream.read(CHUNK_BYTES)):
            received += len(chunk)
            digest.update(chunk)
            arriving.write(chunk)
        if received != due:
            raise ConflictError(f"Part {given['part']} has {due} bytes, not {received}: send it again.")
        arriving.flush()
        (folder / given["part"]).unlink(missing_ok=True)
        (folder / given["part"]).hardlink_to(arriving.name)
    return Response(status=200, headers={"ETag": f'"{digest.hexdigest()}"'})


@blueprint.post("/lfs/complete")
def complete() -> Response:
    """All parts have come: make them one blob. Its hash is checked, so the parts' own need not be."""
    given = _check_link("complete")
    folder = _parts_folder(given)
    if not folder.is_dir() and not registry().blobs.has(given["oid"]):
        raise ConflictError(f"No part of {given['oid']} has arrived: start the upload again.")
    if folder.is_dir():
        registry().blobs.put(Joined(sorted(folder.iterdir())), int(given["size"]), expected_sha256=given["oid"])
        upload_claims.note_upload(registry().db, given["oid"], int(given["size"]), given["who"])
        shutil.rmtree(folder)
        quotas.release(registry().db, _upload_key(given))
    return jsonify({})


@blueprint.post("/<namespace>/<name>.git/info/lfs/verify")
def verify(namespace: str, name: str) -> Response:
    writable_repo(namespace, name)
    fields = body()
    oid = text_field(fields, "oid")
    if not uploaded(oid) or registry().blobs.path(oid).stat().st_size != fields.get("size"):
        raise ArtifactError(f"{oid} did not arrive whole: upload it again.")
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


def _parts_folder(given: dict[str, str]) -> Path:
    """Where the parts of one upload wait. Those that are given up go with other interrupted uploads (gc)."""
    return registry().blobs.incoming / _upload_key(given)


def _upload_key(given: dict[str, str]) -> str:
    return hashlib.sha256(f"{given['oid']} {given['who']}".encode()).hexdigest()


def _link(action: str, fields: dict[str, str]) -> str:
    return f"{endpoint()}/lfs/{action}?{_sign(action, fields)}"


def _check_link(action: str, *more: str) -> dict[str, str]:
    """The fields of a link to `action`. Raises ForbiddenError where it isn't ours or has expired."""
    given = {key: request.args.get(key, "") for key in ("oid", "size", "until", "who", *more)}
    made = urlencode(given | {"signature": request.args.get("signature", "")})
    if not hmac.compare_digest(_sign(action, given), made):
        raise ForbiddenError("This upload link is not one of ours: start the upload again.")
    if int(given["until"]) < time.time():
        raise ForbiddenError("This upload link has expired: start the upload again.")
    return given


def _sign(action: str, fields: dict[str, str]) -> str:
    """The query string of `fields` with a signature over them and what they permit."""
    key = keys.secret(registry().db, "lfs")
    signature = hmac.new(key, f"{action}?{urlencode(fields)}".encode(), hashlib.sha256).hexdigest()
    return urlencode(fields | {"signature": signature})
