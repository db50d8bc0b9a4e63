"""Numbers of bytes as people read them."""


def bytes_text(count: int) -> str:
    """A size for people: "" for none."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count) if count else ""
