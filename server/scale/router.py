"""Which replica Ray Serve picks for a request: as placement.py says, by what replicas report and the ingress has under way.

Serve makes it in each process that picks, of this module as it was where the application was made: what it knows is therefore
kept elsewhere, in the process's fleet, which the ingress reads and counts in.
"""

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from graft.server.scale.fleet import Asked, Seen, process_fleet, read_seen


class DigestRouter(RequestRouter):
    """Bounded-load rendezvous hashing over adapters' digests. A call's first argument is an `Asked`."""

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        process_fleet().see([seen(one) for one in replicas])

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One tier each, best first; none while no replica may be asked: Serve then asks again after a moment."""
        asked = pending_request.args[0] if pending_request is not None and pending_request.args else None
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        by_id = {one.replica_id.unique_id: one for one in candidate_replicas}
        order = self.order(asked if isinstance(asked, Asked) else Asked(None))
        return [[by_id[id]] for id in order if id in by_id]

    def order(self, asked: Asked) -> list[str]:
        """Replicas' ids, best first."""
        return process_fleet().choose(asked)


def seen(replica: RunningReplica) -> Seen:
    """What a replica has said, at its start (`metadata`) and last (`report`: replica.py)."""
    told = {"id": replica.replica_id.unique_id, **replica.replica_metadata, **replica.routing_stats}
    return read_seen(told)
