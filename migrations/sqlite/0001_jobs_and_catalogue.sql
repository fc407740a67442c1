-- Jobs and the catalogue, and the customers where there is no platform to own them.

-- The platform's columns. Not altered where it is there: then it is somebody's.
CREATE TABLE IF NOT EXISTS customers (
    id INTEGER PRIMARY KEY CHECK (id BETWEEN 1 AND 4294967295),
    email TEXT UNIQUE,
    password_hash TEXT,
    company_name TEXT,
    domain TEXT,
    platform TEXT,
    status TEXT NOT NULL DEFAULT 'active',
    web_port INTEGER,
    server_id INTEGER,
    db_name TEXT,
    db_user TEXT,
    db_password TEXT
);

CREATE TABLE customer_backup_jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    customer_id INTEGER NOT NULL,
    job_type TEXT NOT NULL CHECK (job_type IN ('backup', 'restore')),
    backup_type TEXT NOT NULL CHECK (backup_type IN ('db', 'files', 'both')),
    snapshot_id TEXT,
    status TEXT NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'running', 'completed', 'failed')),
    error_message TEXT,
    created_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
    completed_at TEXT,
    source TEXT,
    online INTEGER NOT NULL DEFAULT 0,
    note TEXT,
    server TEXT NOT NULL DEFAULT 'default',
    attempts INTEGER NOT NULL DEFAULT 0,
    lease_owner TEXT,
    lease_until INTEGER,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    committing INTEGER NOT NULL DEFAULT 0,
    intended_snapshot TEXT,
    failure TEXT,
    phase TEXT,
    bytes_done INTEGER NOT NULL DEFAULT 0,
    bytes_total INTEGER,
    files_done INTEGER NOT NULL DEFAULT 0,
    bytes_per_second INTEGER,
    started_at INTEGER,
    finished_at INTEGER,
    active_customer INTEGER GENERATED ALWAYS AS (CASE WHEN status IN ('pending', 'running') THEN customer_id END) VIRTUAL
);
CREATE UNIQUE INDEX backup_jobs_one_active ON customer_backup_jobs (active_customer);
CREATE INDEX backup_jobs_of_customer ON customer_backup_jobs (customer_id, id);
CREATE INDEX backup_jobs_to_run ON customer_backup_jobs (status, server, id);

-- Times are milliseconds since 1970, UTC.
CREATE TABLE customer_backups (
    customer_id INTEGER NOT NULL,
    source TEXT NOT NULL,
    snapshot_id TEXT NOT NULL,
    time INTEGER NOT NULL,
    backup_type TEXT NOT NULL,
    note TEXT,
    bytes INTEGER,
    bytes_added INTEGER,
    database_bytes INTEGER,
    files INTEGER,
    PRIMARY KEY (customer_id, source, snapshot_id)
) WITHOUT ROWID;
CREATE INDEX backups_of_snapshot ON customer_backups (snapshot_id);

-- Which snapshots the catalogue has taken in, also those that hold no customer.
CREATE TABLE backup_snapshots (
    repository_id TEXT NOT NULL,
    snapshot_id TEXT NOT NULL,
    missing_since INTEGER,
    PRIMARY KEY (repository_id, snapshot_id)
) WITHOUT ROWID;

-- Which repository the backups of a hosting server are in.
CREATE TABLE backup_repository_users (
    server TEXT NOT NULL,
    source TEXT NOT NULL,
    repository_id TEXT NOT NULL,
    PRIMARY KEY (server, source)
) WITHOUT ROWID;

-- When a repository was last synced, for whoever wants to know, and last pruned, so that one worker of many does that each day.
CREATE TABLE backup_repositories (
    repository_id TEXT PRIMARY KEY,
    synced_at INTEGER,
    pruned_at INTEGER
) WITHOUT ROWID;
