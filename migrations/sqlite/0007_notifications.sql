-- Ends of jobs that are still to be told, and how many were.

-- Times are milliseconds since 1970, UTC.
CREATE TABLE backup_notifications (
    id TEXT PRIMARY KEY,
    channel TEXT NOT NULL,
    customer_id INTEGER NOT NULL,
    job_id INTEGER NOT NULL,
    payload TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    due_at INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX backup_notifications_due ON backup_notifications (channel, due_at);
CREATE INDEX backup_notifications_of_customer ON backup_notifications (customer_id, channel, created_at);

CREATE TABLE backup_notification_counts (
    channel TEXT NOT NULL,
    outcome TEXT NOT NULL,
    number INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (channel, outcome)
) WITHOUT ROWID;
INSERT INTO backup_notification_counts (channel, outcome) VALUES
    ('webhook', 'sent'), ('webhook', 'given_up'), ('email', 'sent'), ('email', 'given_up');
