"""The headers of our own that answers may have, of all routes. Pages of other origins may read each (cors.py)."""

REQUEST_ID = "X-Request-Id"  # of requests, too
MESSAGE_ID = "Request-Id"  # the same, as Anthropic's clients look for it
ADAPTER_DIGEST = "X-Adapter-Digest"
ADAPTER_REVISION = "X-Adapter-Revision"
IGNORED_FIELDS = "X-Ignored-Fields"
RETRY_AFTER = "Retry-After"
SHOULD_RETRY = "X-Should-Retry"  # clients of OpenAI and Anthropic go by it
AUTHENTICATE = "WWW-Authenticate"
ALLOW = "Allow"

OWN = (
    REQUEST_ID,
    MESSAGE_ID,
    ADAPTER_DIGEST,
    ADAPTER_REVISION,
    IGNORED_FIELDS,
    RETRY_AFTER,
    SHOULD_RETRY,
    AUTHENTICATE,
    ALLOW,
)
