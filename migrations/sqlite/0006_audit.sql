-- Who did what to which backup, from where and when. Rows are never changed.

-- Times are milliseconds since 1970, UTC. Of what concerns no customer the customer is NULL.
CREATE TABLE backup_audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    customer_id INTEGER,
    who TEXT NOT NULL,
    name TEXT,
    action TEXT NOT NULL,
    source TEXT,
    backup_type TEXT,
    snapshot_id TEXT,
    job_id INTEGER,
    address TEXT,
    request_id TEXT
);
CREATE INDEX backup_audit_of_customer ON backup_audit (customer_id, id);
