-- Who is logged in, and which failed jobs customers have seen.

-- The key is a digest of what the browser holds. Times are milliseconds since 1970, UTC.
CREATE TABLE backup_sessions (
    session_key TEXT PRIMARY KEY,
    customer_id INTEGER NOT NULL,
    credential TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    seen_at INTEGER NOT NULL,
    flash TEXT
) WITHOUT ROWID;
CREATE INDEX backup_sessions_by_age ON backup_sessions (seen_at);

ALTER TABLE customer_backup_jobs ADD COLUMN dismissed_at INTEGER;
