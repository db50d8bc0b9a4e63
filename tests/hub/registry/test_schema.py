"""The tables of a fresh registry, written down: a migration that changes them changes this file, on purpose."""

from graft.hub.registry.registry import Registry

EXPECTED = {
    "_sqlite_migrations": "id migration_set name applied_at",
    "artifacts": "revision_id digest method variant task base_id base_fingerprint parameters bytes max_rank dtype config tensors provenance card warnings",
    "audit": "id at who action subject detail hash",
    "base_claims": "who fingerprint id manifest created_at",
    "bases": "fingerprint id manifest created_at",
    "blobs": "sha256 git_oid size created_at who",
    "evaluations": "id repo_id revision_id digest base_fingerprint task data_hash metric value n low high seconds engine source extra who created_at predictions_hash",
    "facet_counts": "private task base method license n",
    "files": "revision_id path sha256 changed_in",
    "labels": "label repo_id",
    "listing": "repo_id revision_id digest private namespace task base method license parameters bytes score downloads created_at updated_at name",
    "members": "namespace user_id",
    "quotas": "user_id bytes repos requests",
    "ref_moves": "id repo_id kind name old new who why at",
    "refs": "repo_id kind name revision_id",
    "repos": "id namespace name private disabled created_at updated_at deleted_at moved_to downloads created_by",
    "reservations": "key who bytes created_at",
    "revisions": "id repo_id parent author title message created_at row_bytes",
    "sessions": "hash token_id created_at expires_at",
    "settings": "key value",
    "task_data": "task data_hash examples created_at",
    "task_moves": "id task repo_id revision_id move_id",
    "task_owners": "task namespace",
    "tasks": "slug metric description data_hash examples created_at updated_at",
    "texts": "name labels card",
    "texts_config": "k v",
    "texts_content": "id c0 c1 c2",
    "texts_data": "id block",
    "texts_docsize": "id sz",
    "texts_idx": "segid term pgno",
    "tokens": "id user_id name hash scope limits created_at last_used_at expires_at revoked_at",
    "uploads": "sha256 who created_at size",
    "users": "id name created_at",
}
EXPECTED_OTHERS = """
artifacts_digest
audit_no_delete
audit_no_update
audit_subject
audit_who
bases_id
blobs_who
evaluations_digest
evaluations_places
evaluations_repo
evaluations_task
files_sha256
idx__sqlite_migrations_migration_set_name
labels_repo
listing_bytes
listing_changes
listing_created
listing_downloads
listing_enters
listing_facets
listing_found
listing_leaves
listing_name
listing_score
listing_task
listing_updated
live_repos
ref_moves_ref
refs_revision
repos_created_by
reservations_who
revisions_author
revisions_repo
task_moves_task
tokens_user
uploads_who
"""


def test_a_fresh_registry_has_the_expected_schema(tmp_path):
    db = Registry(tmp_path / "registry.db", create=True).db
    rows = db.execute(
        "SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' AND tbl_name NOT LIKE '%\\_fts%' ESCAPE '\\'"
    ).fetchall()
    columns = {
        row["name"]: " ".join(column["name"] for column in db.execute(f"PRAGMA table_info([{row['name']}])"))
        for row in rows
        if row["type"] == "table"
    }
    assert columns == EXPECTED
    others = sorted(row["name"] for row in rows if row["type"] != "table")
    assert others == EXPECTED_OTHERS.split()


def test_opening_an_old_registry_again_changes_nothing(tmp_path):
    path = tmp_path / "registry.db"
    dumps = []
    for _ in range(2):
        registry = Registry(path, create=True)
        dumps.append([tuple(row) for row in registry.db.execute("SELECT name, sql FROM sqlite_master ORDER BY name")])
        registry.db.close()
    assert dumps[0] == dumps[1]
