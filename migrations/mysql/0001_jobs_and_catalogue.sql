-- Jobs and the catalogue. Every statement can be repeated: DDL commits at once here, so that a migration which is interrupted starts over.

-- The platform's own shape of the table, where no earlier deployment made it.
CREATE TABLE IF NOT EXISTS customer_backup_jobs (
    id INT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    customer_id INT NOT NULL,
    job_type ENUM('backup','restore') NOT NULL,
    backup_type ENUM('db','files','both') NOT NULL,
    snapshot_id VARCHAR(64) NULL,
    status ENUM('pending','running','completed','failed') NOT NULL DEFAULT 'pending',
    error_message TEXT NULL,
    created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    completed_at TIMESTAMP NULL DEFAULT NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

SET @is_new = (SELECT COUNT(*) = 0 FROM information_schema.columns
    WHERE table_schema = DATABASE() AND table_name = 'customer_backup_jobs' AND column_name = 'active_customer');

-- Whoever ran these is gone, and a click of long ago must not set a shop back today.
SET @step = IF(@is_new,
    'UPDATE customer_backup_jobs SET error_message = ''It was interrupted by an upgrade of the backup system. Please start it again.'',
         completed_at = CURRENT_TIMESTAMP, created_at = created_at, status = ''failed''
     WHERE status IN (''pending'', ''running'')',
    'DO 0');
PREPARE step FROM @step;
EXECUTE step;

SET @step = IF((SELECT character_maximum_length < 64 FROM information_schema.columns
        WHERE table_schema = DATABASE() AND table_name = 'customer_backup_jobs' AND column_name = 'snapshot_id'),
    'ALTER TABLE customer_backup_jobs MODIFY snapshot_id VARCHAR(64) NULL',
    'DO 0');
PREPARE step FROM @step;
EXECUTE step;

-- A first TIMESTAMP without a default changes with every update, on older servers.
SET @step = IF((SELECT extra LIKE '%on update%' FROM information_schema.columns
        WHERE table_schema = DATABASE() AND table_name = 'customer_backup_jobs' AND column_name = 'created_at'),
    'ALTER TABLE customer_backup_jobs MODIFY created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP',
    'DO 0');
PREPARE step FROM @step;
EXECUTE step;

-- In one statement, so that it is there as a whole or not at all.
SET @step = IF(@is_new,
    'ALTER TABLE customer_backup_jobs
        ADD COLUMN source VARCHAR(16) CHARACTER SET ascii NULL,
        ADD COLUMN online TINYINT NOT NULL DEFAULT 0,
        ADD COLUMN note VARCHAR(500) CHARACTER SET utf8mb4 NULL,
        ADD COLUMN server VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL DEFAULT ''default'',
        ADD COLUMN attempts INT NOT NULL DEFAULT 0,
        ADD COLUMN lease_owner VARCHAR(128) CHARACTER SET utf8mb4 NULL,
        ADD COLUMN lease_until BIGINT NULL,
        ADD COLUMN cancel_requested TINYINT NOT NULL DEFAULT 0,
        ADD COLUMN committing TINYINT NOT NULL DEFAULT 0,
        ADD COLUMN intended_snapshot CHAR(64) CHARACTER SET ascii NULL,
        ADD COLUMN failure VARCHAR(16) CHARACTER SET ascii NULL,
        ADD COLUMN phase VARCHAR(32) CHARACTER SET ascii NULL,
        ADD COLUMN bytes_done BIGINT NOT NULL DEFAULT 0,
        ADD COLUMN bytes_total BIGINT NULL,
        ADD COLUMN files_done BIGINT NOT NULL DEFAULT 0,
        ADD COLUMN bytes_per_second BIGINT NULL,
        ADD COLUMN started_at BIGINT NULL,
        ADD COLUMN finished_at BIGINT NULL,
        ADD COLUMN active_customer BIGINT GENERATED ALWAYS AS
            (CASE WHEN status IN (''pending'', ''running'') THEN customer_id END) VIRTUAL,
        ADD UNIQUE INDEX backup_jobs_one_active (active_customer),
        ADD INDEX backup_jobs_of_customer (customer_id, id),
        ADD INDEX backup_jobs_to_run (status, server, id)',
    'DO 0');
PREPARE step FROM @step;
EXECUTE step;
DEALLOCATE PREPARE step;

-- Times are milliseconds since 1970, UTC.
CREATE TABLE IF NOT EXISTS customer_backups (
    customer_id BIGINT NOT NULL,
    source VARCHAR(16) CHARACTER SET ascii NOT NULL,
    snapshot_id CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    time BIGINT NOT NULL,
    backup_type VARCHAR(8) CHARACTER SET ascii NOT NULL,
    note VARCHAR(500) NULL,
    bytes BIGINT NULL,
    bytes_added BIGINT NULL,
    database_bytes BIGINT NULL,
    files BIGINT NULL,
    PRIMARY KEY (customer_id, source, snapshot_id),
    INDEX backups_of_snapshot (snapshot_id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

-- Which snapshots the catalogue has taken in, also those that hold no customer.
CREATE TABLE IF NOT EXISTS backup_snapshots (
    repository_id CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    snapshot_id CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    missing_since BIGINT NULL,
    PRIMARY KEY (repository_id, snapshot_id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

-- Which repository the backups of a hosting server are in.
CREATE TABLE IF NOT EXISTS backup_repository_users (
    server VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    source VARCHAR(16) CHARACTER SET ascii NOT NULL,
    repository_id CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    PRIMARY KEY (server, source)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

-- When a repository was last synced, for whoever wants to know, and last pruned, so that one worker of many does that each day.
CREATE TABLE IF NOT EXISTS backup_repositories (
    repository_id CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
    synced_at BIGINT NULL,
    pruned_at BIGINT NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;
