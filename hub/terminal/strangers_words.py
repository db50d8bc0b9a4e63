"""What strangers wrote, on its way to a terminal."""


def visible_text(text: str) -> str:
    """Strangers' words as a terminal shows and doesn't obey them: an escape sequence in a title could retype a command."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
