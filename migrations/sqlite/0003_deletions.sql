-- Backups that their customers deleted, and what keeps the figures of a monitoring cheap.

-- In milliseconds since 1970, UTC.
ALTER TABLE customer_backups ADD COLUMN deleted_at INTEGER;
CREATE INDEX backups_of_source ON customer_backups (source, deleted_at, time);

-- All that is counted of jobs is in it: the rows themselves are not read for that.
CREATE INDEX backup_jobs_counted ON customer_backup_jobs (job_type, status, started_at, finished_at, bytes_done);
