-- Who is logged in, and which failed jobs customers have seen. Every statement can be repeated, as in 0001.

-- The key is a digest of what the browser holds. Times are milliseconds since 1970, UTC.
CREATE TABLE IF NOT EXISTS backup_sessions (
    session_key CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
    customer_id BIGINT NOT NULL,
    credential CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    created_at BIGINT NOT NULL,
    seen_at BIGINT NOT NULL,
    flash VARCHAR(1000) CHARACTER SET utf8mb4 NULL,
    INDEX backup_sessions_by_age (seen_at)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

SET @step = IF((SELECT COUNT(*) = 0 FROM information_schema.columns
        WHERE table_schema = DATABASE() AND table_name = 'customer_backup_jobs' AND column_name = 'dismissed_at'),
    'ALTER TABLE customer_backup_jobs ADD COLUMN dismissed_at BIGINT NULL',
    'DO 0');
PREPARE step FROM @step;
EXECUTE step;
DEALLOCATE PREPARE step;
