"""What graft's hub and graft's client say to each other beyond the Hugging Face protocol. Others take no notice of it."""

TITLE = "graft hub"  # of the API's description, by which a client knows such a hub
TAGS = "X-Graft-Tags"  # a commit's header: names for the new revision, which come with it or not at all
LARGE_BY_LFS = {"X-Graft-Uploads": "lfs"}  # a client's header: it sends large files by LFS where the hub wants that
