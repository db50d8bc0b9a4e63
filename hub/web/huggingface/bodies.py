"""The bodies that Hugging Face clients send, as far as they are read here. Clients send more; that is left aside."""

from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field

from graft.hub.request_body import Body

MAX_OFFERED = 1000  # files of one preupload
MAX_BATCH = 256  # of one LFS batch, which is what clients send at once: a large file's answer holds a link for each of its parts
Count = Annotated[int, Field(ge=0, lt=1 << 63)]


def _to_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class _Sent(Body):
    model_config = ConfigDict(extra="ignore")


class Card(_Sent):
    """POST /api/validate-yaml"""

    content: str


class NewRepo(_Sent):
    """POST /api/repos/create and DELETE /api/repos/delete: the name may hold the namespace, or give it apart."""

    name: str
    organization: str = ""
    type: str = "model"
    visibility: str = "public"
    private: bool = False

    @property
    def is_private(self) -> bool:
        return self.private or self.visibility == "private"

    def full_name(self, default: str) -> str:
        """NAMESPACE/NAME, under `default` where no namespace is given."""
        return self.name if "/" in self.name else f"{self.organization or default}/{self.name}"


class Renaming(_Sent):
    """POST /api/repos/move"""

    fromRepo: str
    toRepo: str


class Settings(_Sent):
    """PUT .../settings"""

    gated: bool | str = False
    visibility: str | None = None
    private: bool | None = None

    @property
    def becomes_private(self) -> bool | None:
        """None: it stays as it is."""
        return self.private if self.visibility is None else self.visibility == "private"


class Paths(_Sent):
    """POST .../paths-info"""

    paths: Annotated[list[str], BeforeValidator(_to_list)] = Field(default_factory=list)
    expand: bool | str = False


class NewTag(_Sent):
    """POST .../tag"""

    tag: str


class NewBranch(_Sent):
    """POST .../branch"""

    startingPoint: str = "main"


class Offer(_Sent):
    """A file that shall be uploaded: its size and, in base64, its first bytes."""

    path: str
    size: Count
    sample: str = ""


class Offers(_Sent):
    """POST .../preupload"""

    files: list[Offer] = Field(max_length=MAX_OFFERED)


class CommitHeader(_Sent):
    """The first line of a commit."""

    summary: str = ""
    description: str = ""
    parentCommit: str = ""


class CommitFile(_Sent):
    """A file of a commit, in it."""

    path: str
    content: str = ""
    encoding: str = "utf-8"


class CommitLfsFile(_Sent):
    """A file of a commit that came before it."""

    path: str
    oid: str


class CommitPath(_Sent):
    """What a commit deletes."""

    path: str


class LfsObject(_Sent):
    """POST .../info/lfs/verify, and an object of a batch: a file by its sha256."""

    oid: str
    size: Count


class LfsBatch(_Sent):
    """POST .../info/lfs/objects/batch"""

    operation: str
    transfers: list[str] = Field(default_factory=list)
    objects: list[LfsObject] = Field(max_length=MAX_BATCH)
