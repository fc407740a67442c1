-- Ends of jobs that are still to be told, and how many were. Every statement can be repeated.

-- Times are milliseconds since 1970, UTC.
CREATE TABLE IF NOT EXISTS backup_notifications (
    id CHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
    channel VARCHAR(16) CHARACTER SET ascii NOT NULL,
    customer_id BIGINT NOT NULL,
    job_id BIGINT NOT NULL,
    payload TEXT CHARACTER SET utf8mb4 NOT NULL,
    created_at BIGINT NOT NULL,
    due_at BIGINT NOT NULL,
    attempts INT NOT NULL DEFAULT 0,
    INDEX backup_notifications_due (channel, due_at),
    INDEX backup_notifications_of_customer (customer_id, channel, created_at)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

CREATE TABLE IF NOT EXISTS backup_notification_counts (
    channel VARCHAR(16) CHARACTER SET ascii NOT NULL,
    outcome VARCHAR(16) CHARACTER SET ascii NOT NULL,
    number BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (channel, outcome)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;
INSERT IGNORE INTO backup_notification_counts (channel, outcome) VALUES
    ('webhook', 'sent'), ('webhook', 'given_up'), ('email', 'sent'), ('email', 'given_up');
