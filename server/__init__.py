"""The server: requests -> tokens. Importing it is cheap."""

from graft.hub.machine.openmp_wait import wait_briefly

wait_briefly()
