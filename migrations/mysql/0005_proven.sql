-- Which backups were restored to prove that they can be. Every statement can be repeated.

-- What the database held while it was dumped (a JSON list of names), and when the backup was last restored for a proof, in milliseconds since 1970, UTC.
SET @step = IF((SELECT COUNT(*) = 0 FROM information_schema.columns
        WHERE table_schema = DATABASE() AND table_name = 'customer_backups' AND column_name = 'proven_at'),
    'ALTER TABLE customer_backups
        ADD COLUMN database_tables MEDIUMTEXT CHARACTER SET utf8mb4 NULL,
        ADD COLUMN proven_at BIGINT NULL',
    'DO 0');
PREPARE step FROM @step;
EXECUTE step;

-- The last proof of each customer and source that was tried, and the last one that succeeded.
CREATE TABLE IF NOT EXISTS backup_proofs (
    customer_id BIGINT NOT NULL,
    source VARCHAR(16) CHARACTER SET ascii NOT NULL,
    snapshot_id CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    tried_at BIGINT NOT NULL,
    failure TEXT CHARACTER SET utf8mb4 NULL,
    proven_at BIGINT NULL,
    proven_snapshot CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL,
    PRIMARY KEY (customer_id, source)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

-- When some of a repository's packs were last read, and how many of them were damaged.
SET @step = IF((SELECT COUNT(*) = 0 FROM information_schema.columns
        WHERE table_schema = DATABASE() AND table_name = 'backup_repositories' AND column_name = 'sampled_at'),
    'ALTER TABLE backup_repositories
        ADD COLUMN sampled_at BIGINT NULL,
        ADD COLUMN sample_errors BIGINT NULL',
    'DO 0');
PREPARE step FROM @step;
EXECUTE step;
DEALLOCATE PREPARE step;
