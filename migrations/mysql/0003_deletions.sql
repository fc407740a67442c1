-- Backups that their customers deleted, and what keeps the figures of a monitoring cheap. Every statement can be repeated.

-- In one statement for each table, so that it is there as a whole or not at all. The mark is a time in milliseconds since 1970, UTC.
SET @step = IF((SELECT COUNT(*) = 0 FROM information_schema.columns
        WHERE table_schema = DATABASE() AND table_name = 'customer_backups' AND column_name = 'deleted_at'),
    'ALTER TABLE customer_backups
        ADD COLUMN deleted_at BIGINT NULL,
        ADD INDEX backups_of_source (source, deleted_at, time)',
    'DO 0');
PREPARE step FROM @step;
EXECUTE step;

-- All that is counted of jobs is in it: the rows themselves are not read for that.
SET @step = IF((SELECT COUNT(*) = 0 FROM information_schema.statistics
        WHERE table_schema = DATABASE() AND table_name = 'customer_backup_jobs' AND index_name = 'backup_jobs_counted'),
    'ALTER TABLE customer_backup_jobs
        ADD INDEX backup_jobs_counted (job_type, status, started_at, finished_at, bytes_done)',
    'DO 0');
PREPARE step FROM @step;
EXECUTE step;
DEALLOCATE PREPARE step;
