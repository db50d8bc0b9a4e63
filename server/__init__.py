"""The server: requests -> tokens. Importing it is cheap."""

from graft.hub.threads import wait_briefly

wait_briefly()
