-- Who did what to which backup, from where and when. Every statement can be repeated, as in 0001.

-- Rows are never changed. Times are milliseconds since 1970, UTC. Of what concerns no customer the customer is NULL.
CREATE TABLE IF NOT EXISTS backup_audit (
    id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    at BIGINT NOT NULL,
    customer_id BIGINT NULL,
    who VARCHAR(16) CHARACTER SET ascii NOT NULL,
    name VARCHAR(64) CHARACTER SET utf8mb4 NULL,
    action VARCHAR(16) CHARACTER SET ascii NOT NULL,
    source VARCHAR(16) CHARACTER SET ascii NULL,
    backup_type VARCHAR(8) CHARACTER SET ascii NULL,
    snapshot_id CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL,
    job_id BIGINT NULL,
    address VARCHAR(45) CHARACTER SET ascii NULL,
    request_id VARCHAR(64) CHARACTER SET ascii NULL,
    INDEX backup_audit_of_customer (customer_id, id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;
