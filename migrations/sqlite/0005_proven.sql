-- Which backups were restored to prove that they can be.

-- What the database held while it was dumped (a JSON list of names), and when the backup was last restored for a proof, in milliseconds since 1970, UTC.
ALTER TABLE customer_backups ADD COLUMN database_tables TEXT;
ALTER TABLE customer_backups ADD COLUMN proven_at INTEGER;

-- The last proof of each customer and source that was tried, and the last one that succeeded.
CREATE TABLE backup_proofs (
    customer_id INTEGER NOT NULL,
    source TEXT NOT NULL,
    snapshot_id TEXT NOT NULL,
    tried_at INTEGER NOT NULL,
    failure TEXT,
    proven_at INTEGER,
    proven_snapshot TEXT,
    PRIMARY KEY (customer_id, source)
) WITHOUT ROWID;

-- When some of a repository's packs were last read, and how many of them were damaged.
ALTER TABLE backup_repositories ADD COLUMN sampled_at INTEGER;
ALTER TABLE backup_repositories ADD COLUMN sample_errors INTEGER;
